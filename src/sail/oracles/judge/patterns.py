"""The forms in which judges write verdicts and scores, as regular expressions; verdicts.py says what is made of them.

Every repetition next to another one is bounded, so that no reply takes long to search.
"""

from __future__ import annotations

import re

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
_PRAISE = r"(?:final\s+|overall\s+|my\s+|the\s+){0,3}"
_LABEL = (
    _PRAISE
    + "(?:"
    + _any(
        "answer winner winning_response verdict choice preference preferred preferred_response decision judgment judgement"
    )
    + "|"
    + _any("conclusion result better better_response better_answer better_one best best_response best_answer")
    + "|"
    + _any(
        "antwort gewinner sieger urteil entscheidung fazit respuesta ganador ganadora veredicto elección conclusión"
    )
    + "|"
    + _any("réponse gagnant gagnante vainqueur choix risposta vincitore verdetto resposta vencedor vencedora")
    + "|"
    + _any(
        "ответ победитель вердикт вывод 最终答案 答案 胜者 胜出者 赢家 结论 判定 最终判断 选择 答え 勝者 結論 정답 승자 결론 답"
    )
    + ")"
)
_NAMED_BY = r"(?:[:=]|-|–|—|\b(?:is|ist|es|est|è|é)\b|是|为|は)[\s:=]{0,6}"
_AROUND = r"[\s*_`~\"'“”«»(\[{\\$]{0,8}"
_BEHIND = r"[\s*_`~\"'“”«»)\]}$]{0,8}"
_WHOLE_WORD = rf"(?<![a-zа-я0-9])({_WORD})(?![a-zа-я0-9])"
_ORDINAL_NOUN = r"(?:(?<=st|nd)\s+(?:response|answer|one))?"
# "Answer: A or B" is no verdict for A, and neither is "Answer: A response that ...".
_AND = _any("/ , & and or und oder et ou y o e и или 和 或 与")
_NO_RIVAL = rf"(?!\W{{0,4}}(?:{_AND})\W{{0,4}}{_NOUN}(?:[abc]|first|second)\b)"
_ENDS = (
    rf"(?={_BEHIND}(?:$|[\n.,;:!。，；！()}}—–<>-]|更|胜|比|因为"
    rf"|(?:{_any('is was wins because since as due over by with weil da porque car perché потому')})\b))"
)

BRACKETED = re.compile(rf"\[\s?\[[\s*\"']{{0,4}}{_NOUN}({_WORD})[\s*\"']{{0,4}}\]\s?\]", re.IGNORECASE)
UNDECIDED = re.compile(r"\[\[\s?[abc](?:\s?(?:/|,|\||or|and)\s?[abc]){1,2}\s?\]\]", re.IGNORECASE)
IF = re.compile(rf"[\s\"'`*:]{{0,6}}(?:{_any('if when means wenn si если 如果 falls')})\b", re.IGNORECASE)
LABELLED = re.compile(
    rf"(?<![^\W_]){_LABEL}[\s*_`\"'“”]{{0,6}}{_NAMED_BY}{_AROUND}(?:the\s+)?{_NOUN}{_AROUND}"
    rf"{_WHOLE_WORD}{_ORDINAL_NOUN}{_NO_RIVAL}{_ENDS}",
    re.IGNORECASE,
)
BOXED = re.compile(rf"\\boxed\{{(?:\\text\{{)?\s?{_NOUN}({_WORD})\s?\}}", re.IGNORECASE)
_LEAD = _any(
    "so thus therefore hence overall in_conclusion in_summary i_think i_think_that i_believe i_believe_that , :"
)
_CHOICE = _any("i_prefer i_choose i_pick i_select i_vote_for i_would_choose i_would_pick i_would_prefer")
_PRAISED = _any("better best winner stronger superior preferred safer more_helpful")
ALONE = re.compile(
    rf"(?:(?:{_LEAD})\s*){{0,3}}(?:(?:{_CHOICE})\s+)?(?:the\s+)?{_NOUN}[*_\"']{{0,3}}({_WORD})[*_\"']{{0,3}}"
    rf"(?:\s+(?:response|answer|one))?(?:\s+wins|\s+(?:is|was)\s+(?:(?:clearly|slightly|much|the)\s+){{0,3}}(?:{_PRAISED})"
    rf"(?:\s+(?:response|answer|one|overall))?)?"
    rf"(?:\s+(?:than|over)\s+(?:the\s+)?{_NOUN}(?:[ab]|first|second)(?:\s+(?:response|answer|one))?)?",
    re.IGNORECASE,
)
"""A line that says nothing but who wins."""

_NUMBER = r"([-−]?\d{1,4}(?:[.,]\d{1,4})?)"
_OUT_OF = r"(?:/|out of|von|sur|из)"
_OF_TEN = rf"(?:\s?{_OUT_OF}\s?(\d{{1,6}}))?"
_SCORE_LABEL = (
    _PRAISE
    + "(?:"
    + _any(
        "score rating grade mark verdict answer bewertung note punktzahl puntuación nota calificación puntaje punteggio voto"
    )
    + "|"
    + _any("оценка балл 评分 分数 得分 打分 最终评分 スコア 評価 点数 점수 평점")
    + ")"
)
_SCORE_BY = r"(?:[:=]|-(?=\s)|–|—|\b(?:is|of|ist|es|est|è|é)\b|是|为|は)[\s:=]{0,6}"

SCORE_BRACKETED = re.compile(
    rf"\[\s?\[[\s*\"']{{0,4}}(?:{_SCORE_LABEL}\s?[:=]\s?)?{_NUMBER}{_OF_TEN}[\s*\"']{{0,4}}\]\s?\]",
    re.IGNORECASE,
)
SCORE_LABELLED = re.compile(
    rf"(?<![^\W_]){_SCORE_LABEL}[\s*_`\"'“”]{{0,6}}(?:\([^()\n]{{0,40}}\)[\s*_`\"']{{0,6}})?{_SCORE_BY}{_AROUND}"
    rf"{_NUMBER}{_OF_TEN}(?![\d%])",
    re.IGNORECASE,
)
SCORE_OF_TEN = re.compile(rf"(?<![\d.,/-]){_NUMBER}\s?{_OUT_OF}\s?(\d{{1,6}})(?![\d%])", re.IGNORECASE)
SCORE_ALONE = re.compile(
    rf"(?:i(?:'d| would)? (?:give|rate|score) (?:it|this(?: response)?)(?: an?)? )?{_NUMBER}(?: points?|分|点|점)?",
    re.IGNORECASE,
)
RANGE = re.compile(r"\s?(?:-|–|—|−|to|bis|\.\.)\s?\d")
