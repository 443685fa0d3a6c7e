"""formats.py: every format of the table, and what each kind of bad row says."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sail.data.formats import Row, parse_row, parse_sft_row, shared_text_prompt, to_record
from sail.errors import DataError

ORIGIN = "pairs.jsonl row 17"
ASK = {"role": "user", "content": "What colour is the sky?"}
BLUE = {"role": "assistant", "content": "It is blue."}
GREEN = {"role": "assistant", "content": "It is green."}
SYSTEM = {"role": "system", "content": ""}


def standard(**changes):
    return {"prompt": "The sky is", "chosen": " blue.", "rejected": " green.", **changes}


def chat(**changes):
    return {"prompt": [ASK], "chosen": [BLUE], "rejected": [GREEN], **changes}


def fault(record, parse=parse_row):
    """The message of a record that must be bad; it always names the row and says how to go on."""
    with pytest.raises(DataError) as caught:
        parse(record, ORIGIN)
    message = str(caught.value)
    assert message.startswith(f"{ORIGIN}: field '")
    assert message.count(". ") >= 1
    assert message.endswith(".")
    return message


class TestGoodRows:
    def test_standard_is_kept_letter_by_letter(self):
        row = parse_row(standard(chosen=" blue. \n", score=0.3), ORIGIN)
        assert row == Row("The sky is", " blue. \n", " green.", ORIGIN)
        assert not row.conversational
        assert not row.prompt_only

    def test_conversational_with_explicit_prompt(self):
        row = parse_row(chat(), ORIGIN)
        assert row == Row([ASK], "It is blue.", "It is green.", ORIGIN)
        assert row.conversational

    def test_conversational_with_implicit_prompt(self):
        shared = [SYSTEM, ASK, GREEN, {"role": "user", "content": "Sure?"}]
        row = parse_row({"chosen": [*shared, BLUE], "rejected": [*shared, GREEN]}, ORIGIN)
        assert row == Row(shared, "It is blue.", "It is green.", ORIGIN)

    def test_prompt_repeated_in_the_responses_is_taken_once(self):
        assert parse_row(chat(chosen=[ASK, BLUE], rejected=[ASK, GREEN]), ORIGIN) == parse_row(chat(), ORIGIN)

    def test_explicit_prompt_goes_on_in_both_responses(self):
        more = [BLUE, {"role": "user", "content": "Sure?"}]
        row = parse_row(chat(chosen=[*more, BLUE], rejected=[*more, GREEN]), ORIGIN)
        assert row.prompt == [ASK, *more]

    def test_messages_as_prompt_and_text_as_responses(self):
        assert parse_row(chat(chosen="It is blue.", rejected="It is green."), ORIGIN) == parse_row(
            chat(), ORIGIN
        )

    def test_text_prompt_beside_whole_conversations(self):
        record = {"prompt": ASK["content"], "chosen": [ASK, BLUE], "rejected": [ASK, GREEN]}
        assert parse_row(record, ORIGIN) == parse_row(chat(), ORIGIN)

    @pytest.mark.parametrize("prompt", ["The sky is", [ASK], [{"role": "tool", "content": "42"}]])
    def test_prompt_only(self, prompt):
        row = parse_row({"prompt": prompt}, ORIGIN)
        assert row == Row(prompt, None, None, ORIGIN)
        assert row.prompt_only
        assert not row.identical

    def test_identical_responses_are_kept(self):
        assert parse_row(standard(rejected=" blue."), ORIGIN).identical
        assert parse_row({"chosen": [ASK, BLUE], "rejected": [ASK, BLUE]}, ORIGIN).identical
        assert not parse_row(standard(), ORIGIN).identical

    def test_null_and_empty_message_keys_are_the_schemas_not_the_users(self):
        filled = {**ASK, "tool_calls": None, "images": []}
        assert parse_row(chat(prompt=[filled], tools=None), ORIGIN) == parse_row(chat(), ORIGIN)

    def test_extra_text_keys_of_a_message_reach_the_template(self):
        assert parse_row({"prompt": [{**ASK, "name": "Ann"}]}, ORIGIN).prompt == [{**ASK, "name": "Ann"}]


class TestImplicitText:
    @pytest.mark.parametrize(
        ("chosen", "rejected", "prompt"),
        [
            ("The sky is blue.", "The sky is green.", "The sky is"),
            ("The sky is blue.", "The sky is black.", "The sky is"),  # not after "bl"
            ("Q: 2+2\nA:\n4", "Q: 2+2\nA:\n5", "Q: 2+2\nA:\n"),
            ("Q\n\nA: four", "Q\n\nA: five", "Q\n\nA:"),
            ("a b", "a b c", "a"),  # the shorter response keeps a word
            ("a  b", "a  c", "a "),  # one space goes with the word, as in TRL
        ],
    )
    def test_prompt_ends_at_a_boundary(self, chosen, rejected, prompt):
        row = parse_row({"chosen": chosen, "rejected": rejected}, ORIGIN)
        assert row.prompt == prompt
        assert row.prompt + row.chosen == chosen
        assert row.prompt + row.rejected == rejected

    def test_agrees_with_trl_where_trl_cuts_between_words(self):
        trl = pytest.importorskip("trl")
        for chosen, rejected in [
            ("The sky is blue", "The sky is green"),
            ("Q\nA: x y", "Q\nA: z"),
            ("a  b", "a  c"),
        ]:
            ours = to_record(parse_row({"chosen": chosen, "rejected": rejected}, ORIGIN))
            assert ours == trl.extract_prompt({"chosen": chosen, "rejected": rejected})

    @pytest.mark.parametrize(("chosen", "rejected"), [("blue", "green"), ("same", "same "), (" a", " b")])
    def test_nothing_shared(self, chosen, rejected):
        message = fault({"chosen": chosen, "rejected": rejected})
        assert "field 'prompt' is missing" in message
        assert "Add the prompt as a field of its own" in message

    @given(st.text("ab \n"), st.text("ab \n"), st.text("ab \n"))
    def test_any_cut_is_shared_and_leaves_text_on_both_sides(self, shared, first, second):
        chosen, rejected = shared + first, shared + second
        cut = shared_text_prompt(chosen, rejected)
        if cut is not None:
            assert chosen[:cut] == rejected[:cut]
            assert all(part.strip() for part in (chosen[:cut], chosen[cut:], rejected[cut:]))
            assert chosen[cut] == rejected[cut] == " " or chosen[cut - 1] == "\n"


class TestBadRows:
    @pytest.mark.parametrize("field", ["prompt", "chosen", "rejected"])
    @pytest.mark.parametrize(
        ("value", "cause"),
        [
            (3, "is the int 3, not text"),
            (True, "is the bool True, not text"),
            (float("nan"), "is the float nan, not text"),
            (None, "is null, not text"),
            ({"a": 1}, "is of type dict, not text"),
            ("", "is empty"),
            (" \n", "holds only whitespace"),
            ("a \ud83d", "is not valid Unicode (half a surrogate pair at character 2)"),
            ([], "is an empty list of messages"),
        ],
    )
    def test_not_a_text(self, field, value, cause):
        assert f"field '{field}' {cause}. " in fault(standard(**{field: value}))

    @pytest.mark.parametrize("field", ["prompt", "chosen", "rejected"])
    @pytest.mark.parametrize(
        ("message", "where", "cause"),
        [
            ("hello", "[0]", "is of type str, not a message"),
            ({"from": "human", "value": "hi"}, "[0]", "has no 'role' (keys found: from, value)"),
            ({"role": "user"}, "[0]", "has no 'content' (keys found: role)"),
            ({"role": "user", "content": None}, "[0]", "has no 'content' (keys found: role)"),
            ({"role": "user", "content": 7}, "[0].content", "is the int 7, not text"),
            (
                {"role": "user", "content": "x", "tool_calls": [1]},
                "[0].tool_calls",
                "is of type list, not text",
            ),
        ],
    )
    def test_not_a_message(self, field, message, where, cause):
        assert f"field '{field}{where}' {cause}. " in fault(chat(**{field: [message]}))

    def test_whole_row(self):
        assert "field '(whole row)' is of type list, not an object" in fault([1, 2])

    def test_missing_fields(self):
        assert "field 'rejected' is missing while 'chosen' is given" in fault({"prompt": "a", "chosen": "b"})
        assert "field 'chosen' is missing while 'rejected' is given" in fault(
            {"prompt": "a", "rejected": "b"}
        )
        message = fault({"question": "a", "answer": "b"})
        assert "field 'prompt' is missing (fields found: question, answer)" in message
        assert "rename the column" in message
        assert "(fields found: none)" in fault({})

    def test_prompt_missing_from_conversations(self):
        message = fault({"chosen": [BLUE], "rejected": [GREEN]})
        assert "field 'prompt' is missing, and the responses hold no message before the answer" in message

    def test_answer_is_not_the_assistants(self):
        message = fault(chat(rejected=[BLUE, ASK]))
        assert "field 'rejected' ends with a message of role 'user', not 'assistant'" in message

    @pytest.mark.parametrize("field", ["chosen", "rejected"])
    def test_empty_answer(self, field):
        message = fault(chat(**{field: [{"role": "assistant", "content": " "}]}))
        assert f"field '{field}' holds only whitespace" in message

    def test_nothing_to_answer(self):
        for record in ({"prompt": [ASK, BLUE]}, chat(prompt=[ASK, BLUE])):
            assert "field 'prompt' has an assistant message where the answer's turn is due" in fault(record)
        assert "field 'prompt' holds only whitespace" in fault({"prompt": [{"role": "user", "content": " "}]})

    def test_responses_to_different_prompts(self):
        other = {"role": "user", "content": "And grass?"}
        message = fault({"chosen": [SYSTEM, ASK, BLUE], "rejected": [SYSTEM, other, GREEN]})
        assert (
            "field 'rejected' answers another prompt than 'chosen': they differ from message 2 on" in message
        )
        longer = {"chosen": [ASK, BLUE], "rejected": [ASK, BLUE, ASK, GREEN]}
        assert "they differ from message 2 on" in fault(longer)

    def test_text_beside_messages(self):
        message = fault(standard(prompt="Hi", chosen=[ASK, BLUE], rejected=[ASK, GREEN]))
        assert "field 'prompt' is text that no message before the answer holds" in message
        assert "no message before the answer holds" in fault(standard(chosen=[BLUE], rejected=[GREEN]))
        parrot = standard(prompt="It is blue.", chosen=[ASK, BLUE], rejected=[ASK, BLUE])
        assert "no message before the answer holds" in fault(parrot)
        message = fault({"prompt": ASK["content"], "chosen": [ASK, BLUE], "rejected": "It is green."})
        assert "one is text and the other is messages" in message

    @pytest.mark.parametrize("column", ["tools", "images", "chat_template_kwargs"])
    def test_columns_that_would_change_the_prompt(self, column):
        assert f"field '{column}' would change the prompt" in fault(chat(**{column: {"a": 1}}))


class TestSftRows:
    def test_completion(self):
        assert parse_sft_row({"prompt": "a", "completion": " b"}, ORIGIN) == ("a", " b")
        assert parse_sft_row({"prompt": [ASK], "completion": [BLUE]}, ORIGIN) == ([ASK], "It is blue.")

    def test_preference_row_gives_its_chosen(self):
        assert parse_sft_row(standard(), ORIGIN) == ("The sky is", " blue.")
        assert parse_sft_row(chat(), ORIGIN) == ([ASK], "It is blue.")

    def test_bad(self):
        assert "field 'completion' is missing" in fault({"prompt": "a"}, parse_sft_row)
        assert "field 'completion' is null" in fault({"prompt": "a", "completion": None}, parse_sft_row)
        assert "field 'prompt' is missing" in fault({"completion": "b"}, parse_sft_row)


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": text}), min_size=1
)


@given(st.one_of(text, messages), st.one_of(st.none(), st.tuples(text, text)))
def test_a_row_survives_writing_and_reading(prompt, responses):
    chosen, rejected = responses or (None, None)
    row = Row(prompt, chosen, rejected, ORIGIN)
    assert parse_row(to_record(row), ORIGIN) == row


anything = st.recursive(
    st.sampled_from([None, True, 3, 0.5, "", " ", "text", "other text", "user", "assistant", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected", "tools", "completion"]), anything))
def test_any_record_is_a_row_or_a_data_error(record):
    for parse in (parse_row, parse_sft_row):
        try:
            parse(record, ORIGIN)
        except DataError as error:
            assert str(error).startswith(f"{ORIGIN}: field '")  # noqa: PT017  (both outcomes are right)


def test_no_torch():
    code = "import sys, sail.data.formats, sail.data.sources; print({'torch', 'datasets'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
