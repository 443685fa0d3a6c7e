"""The forms in which judges write verdicts and scores, as regular expressions; verdicts.py says what is made of them.

Every repetition next to another one is bounded, so that no reply takes long to search.
"""

from __future__ import annotations

import re
import unicodedata

WORDS: dict[str, float] = {"a": 1.0, "first": 1.0, "b": 0.0, "б": 0.0, "second": 0.0}
"""What a verdict's word is worth: the probability that the first response wins."""
_TIES = "c tie tied draw equal gleichstand unentschieden empate égalité egalité pareggio ничья 平局 平手 引き分け 同点 무승부"
WORDS |= dict.fromkeys([*_TIES.split(), "equally good"], 0.5)


def _any(words: str) -> str:
    """One of the words (separated by spaces, _ for a space within), the longest first."""
    found = [re.escape(word.replace("_", " ")) for word in words.split()]
    return "|".join(sorted(found, key=len, reverse=True))


_WORD = "|".join(sorted(map(re.escape, WORDS), key=len, reverse=True))
_NOUN = (
    "(?:(?:"
    + _any(
        "response assistant answer option model candidate reply antwort assistent respuesta asistente réponse assistente"
    )
    + "|"
    + _any("risposta resposta ответ 回答 回复 助手 选项 答案 응답 답변")
    + r")\s{0,3})?"
)
_BEFORE = r"(?:final\s+|overall\s+|my\s+|the\s+){0,3}"
# A label that names nothing but the verdict on two responses.
_LABEL = (
    _BEFORE
    + "(?:"
    + _any(
        "winner winning_response verdict preference preferred preferred_response decision judgment judgement better"
    )
    + "|"
    + _any(
        "better_response better_answer better_one best best_response best_answer gewinner sieger urteil entscheidung"
    )
    + "|"
    + _any("ganador ganadora veredicto gagnant gagnante vainqueur vincitore verdetto vencedor vencedora")
    + "|"
    + _any("победитель вердикт 最终答案 最终判断 最终结论 胜者 胜出者 赢家 判定 勝者 승자")
    + ")"
)
# One that may as well name what the question asks for ("The answer is B (Paris)").
_ANY_LABEL = (
    "(?:"
    + _any(
        "answer choice result conclusion antwort fazit respuesta elección conclusión réponse choix risposta resposta"
    )
    + "|"
    + _any("ответ вывод 答案 结论 选择 答え 結論 정답 결론 답")
    + ")"
)
_OWN_LABEL = rf"(?:(?:my\s+|the\s+)?(?:final|overall)\s+|my\s+){_ANY_LABEL}"
_SIGN = r"[:=]|-|–|—"
_IS = r"\b(?:is|ist|es|est|è|é)\b|是|为|は"
_AROUND = r"[\s*_`~\"'“”«»(\[{\\$]{0,8}"
_BEHIND = r"[\s*_`~\"'“”«»)\]}$]{0,8}"
_MARKS = r"[\s*_`\"'“”]{0,6}"
_WHOLE_WORD = rf"(?<![a-zа-я0-9])({_WORD})(?![a-zа-я0-9])"
_ORDINAL_NOUN = r"(?:(?<=st|nd)\s+(?:response|answer|one))?"
# "Answer: A or B" is no verdict for A, and neither is "Answer: A response that ...".
_AND = _any("/ , & and or und oder et ou y o e и или 和 或 与")
_NO_RIVAL = rf"(?!\W{{0,4}}(?:{_AND})\W{{0,4}}{_NOUN}(?:[abc]|first|second)\b)"
_VALUE = rf"{_AROUND}(?:the\s+)?{_NOUN}{_AROUND}{_WHOLE_WORD}{_ORDINAL_NOUN}{_NO_RIVAL}"
# What may be said of the winner. Whatever else follows a verdict's word makes it unreadable.
_ADVERBS = rf"(?:(?:{_any('clearly slightly much far even marginally significantly the a an overall somewhat')})\s+){{0,3}}"
_MORE = _any(
    "accurate appropriate complete concise correct detailed factual harmless helpful honest informative"
)
_MORE += "|" + _any("relevant thorough truthful useful")
_PRAISED = (
    _any("better best winner winning stronger strongest superior preferred preferable safer safest correct")
    + rf"|(?:more|most)\s+(?:{_MORE})|"
    + _any("besser mejor meilleur meilleure migliore melhor лучше")
)
_IS_PRAISED = rf"(?:is|was|ist|es|est|è|é)\s+{_ADVERBS}(?:{_PRAISED})\b"
_PRAISED_IN_CHINESE = (
    r"(?:明显|略|稍)?(?:更|较)(?:好|优|佳|强|安全|准确|有帮助|有用|完整)|获?胜|赢|因为"
    r"|比[^差不糟坏。\n]{1,12}(?:好|优|佳|强)"
)

ENDS = re.compile(
    rf"{_BEHIND}(?:$|[\n.,;:!。，；！()}}—–-]|</|>{{1,3}}(?!=)|{_PRAISED_IN_CHINESE}|{_IS_PRAISED}"
    rf"|(?:{_any('wins won because since as due over by weil da porque car perché потому')})\b)",
    re.IGNORECASE,
)
"""What must follow the word of a named verdict."""
_BAD = _any("not never worse worst weaker weakest inferior wrong incorrect inaccurate harmful unsafe")
_BAD += "|" + _any("dangerous bad poor poorer useless false misleading")
BLAMED = re.compile(
    rf"[ \t*_\"'“”»)\]}}$(–—-]{{0,8}}(?!not\s+{_NOUN}(?:[abc]|first|second)\b)"
    rf"(?:(?:is|was|does|did|has|can|could|would|should)(?:n['’]t\b|\s+(?:not|never)\b)|(?:is|was)\s+{_ADVERBS}(?:less|least)\b"
    rf"|(?:(?:is|was)\s+)?{_ADVERBS}(?:more\s+|most\s+)?(?:{_BAD})\b|(?:loses|lost|fails)\b|<(?!/)|(?:明显|略|稍)?[更较](?:差|糟|坏)|错|不)",
    re.IGNORECASE,
)
"""After the word: it says the opposite of a verdict for it."""
DENIED = re.compile(
    r"(?:\b(?:not|never|cannot|neither|nor|against)|n['’]t|\b(?:rather\s+than|instead\s+of))"
    r"(?:\s+(?!(?:so|thus|hence|therefore|but|my|verdict|final|answer|winner)\b)[\w'’]{1,20}){0,3}[\s*_\"'“”(]{1,4}\Z",
    re.IGNORECASE,
)
"""Before the brackets, in the same line: [[A]] is what it is not."""

BRACKETED = re.compile(rf"\[\[[\s*\"']{{0,4}}{_NOUN}({_WORD})[\s*\"']{{0,4}}\]\]", re.IGNORECASE)
UNDECIDED = re.compile(r"\[\[\s?[abc](?:\s?(?:/|,|\||or|and)\s?[abc]){1,2}\s?\]\]", re.IGNORECASE)
DEFUSED = re.compile(r"\[[^\S\n]+\[[^\[\]\n]{0,60}\][^\S\n]*\]|\[\[[^\[\]\n]{0,60}\][^\S\n]+\]")
"""How the fence shows the verdicts that a response holds: whoever repeats one has not decided anything."""
IF = re.compile(rf"[\s\"'`*:]{{0,6}}(?:{_any('if when means wenn si если 如果 falls')})\b", re.IGNORECASE)
LABELLED = re.compile(
    rf"(?<![^\W_])(?:{_LABEL}|{_OWN_LABEL}){_MARKS}(?:{_SIGN}|{_IS})[\s:=]{{0,6}}{_VALUE}"
    rf"|(?<![^\W_])\"{_ANY_LABEL}\"\s?:\s?\"{_NOUN}({_WORD})\"",
    re.IGNORECASE,
)
_WHOLE_LINE = (
    rf"{_MARKS}%s[\s:=]{{0,6}}{_VALUE}{_BEHIND}(?:{_IS_PRAISED}|{_PRAISED_IN_CHINESE}|\s*wins)?[.!。！]?"
)
LABELLED_LINE = re.compile(f"{_BEFORE}{_ANY_LABEL}{_WHOLE_LINE % f'(?:{_SIGN})'}", re.IGNORECASE)
LABELLED_LAST_LINE = re.compile(f"{_BEFORE}{_ANY_LABEL}{_WHOLE_LINE % f'(?:{_IS})'}", re.IGNORECASE)
BOXED = re.compile(rf"\\boxed\{{(?:\\text\{{)?\s?{_NOUN}({_WORD})\s?\}}", re.IGNORECASE)
_LEAD = _any(
    "so thus therefore hence overall in_conclusion in_summary i_think i_think_that i_believe i_believe_that , :"
)
_CHOICE = _any("i_prefer i_choose i_pick i_select i_vote_for i_would_choose i_would_pick i_would_prefer")
ALONE = re.compile(
    rf"(?:(?:{_LEAD})\s*){{0,3}}(?:(?:{_CHOICE})\s+)?(?:the\s+)?{_NOUN}[*_\"']{{0,3}}({_WORD})[*_\"']{{0,3}}"
    rf"(?:\s+(?:response|answer|one))?(?:\s+wins|\s+{_IS_PRAISED}"
    rf"(?:\s+(?:response|answer|one|overall))?)?"
    rf"(?:\s+(?:than|over)\s+(?:the\s+)?{_NOUN}(?:[ab]|first|second)(?:\s+(?:response|answer|one))?)?",
    re.IGNORECASE,
)
"""A line that says nothing but who wins."""

_NUMBER = r"([-−]?\d{1,4}(?:[.,]\d{1,4})?)"
_OUT_OF = r"(?:/|out of|von|sur|из)"
_OF_TEN = rf"(?:\s?\(?\s?(?:{_OUT_OF}|of)\s?(\d{{1,6}}))?"
_NUMBER_ENDS = r"(?!\d|[.,]\d|\s?%|[ \t]+(?:of\b|\d))"
_SCORE_LABEL = (
    _BEFORE
    + "(?:"
    + _any("score rating grade bewertung punktzahl puntuación calificación puntaje punteggio voto")
    + "|"
    + _any("оценка балл 评分 分数 得分 打分 最终评分 スコア 評価 点数 점수 평점")
    + ")"
)
# Words that begin other sentences too: only where the line holds nothing else.
_ANY_SCORE_LABEL = _any("overall total final verdict mark note nota 总分 итого")
_SCORE_BY = r"(?:[:=]|-(?=\s)|–|—|\b(?:is|of|ist|es|est|è|é)\b|是|为|は)[\s:=]{0,6}"
_SCORE_UNIT = r"(?: points?|分|点|점)?"

SCORE_BRACKETED = re.compile(
    rf"\[\[[\s*\"']{{0,4}}(?:{_SCORE_LABEL}\s?[:=]\s?)?{_NUMBER}{_OF_TEN}[\s*\"']{{0,4}}\]\]",
    re.IGNORECASE,
)
_SCALE = r"(?:\([^()\n]{0,40}\)[\s*_`\"']{0,6})?"
SCORE_LABELLED = re.compile(
    rf"(?<![^\W_]){_SCORE_LABEL}{_MARKS}{_SCALE}{_SCORE_BY}{_AROUND}{_NUMBER}{_OF_TEN}{_NUMBER_ENDS}",
    re.IGNORECASE,
)
SCORE_OF_TEN = re.compile(rf"(?<![\d.,/-]){_NUMBER}\s?{_OUT_OF}\s?(\d{{1,6}})(?![\d%])", re.IGNORECASE)
SCORE_LINE = re.compile(
    rf"{_BEFORE}(?:{_ANY_SCORE_LABEL}){_MARKS}{_SCALE}[:=]\s{{0,3}}{_AROUND}{_NUMBER}{_OF_TEN}{_SCORE_UNIT}{_BEHIND}",
    re.IGNORECASE,
)
SCORE_ALONE = re.compile(
    rf"(?:i(?:'d| would)? (?:give|rate|score) (?:it|this(?: response)?)(?: an?)? )?{_NUMBER}{_SCORE_UNIT}",
    re.IGNORECASE,
)
OF_ALL = re.compile(
    rf"\W*(?:{_SCORE_LABEL}\b|.*(?:\b(?:{_any('overall total final gesamt итог итого')})\b|总))",
    re.IGNORECASE,
)
"""The beginning of a line whose score is for the whole response, not for clarity or style."""
RANGE = re.compile(r"\s?(?:-|–|—|−|to|bis|\.\.)\s?\d")
THOUSANDS = re.compile(r"\d,\d{3}\Z")

_LOOKALIKES = str.maketrans("【】〚〛⟦⟧「」『』：＝→АаＡ", "[][][][][]:=:AaA")


def plain_form(text: str) -> str:
    """Full-width letters, digits, brackets and colons as plain ones, character by character, so that places stay."""
    plain = "".join(form if len(form := unicodedata.normalize("NFKC", one)) == 1 else one for one in text)
    return plain.translate(_LOOKALIKES).replace("\r", "\n")
