"""The beliefs that the studies of small real models ask about."""

from collections import Counter, defaultdict

import pytest

from sae_attr.beliefs import (
    PHRASINGS,
    SPLITS,
    agreement_prompts,
    agreement_rows,
    read_beliefs,
    read_questions,
)


def test_there_are_enough_beliefs_each_once():
    beliefs = read_beliefs()
    false = [belief for belief in beliefs if not belief.true]
    assert Counter(belief.topic for belief in false) == dict.fromkeys(
        {belief.topic for belief in beliefs}, 15
    )
    assert len(false) == 150
    assert len(beliefs) == 200
    assert len({belief.text for belief in beliefs}) == 200
    assert len({belief.id for belief in beliefs}) == 200
    assert not [b.text for b in beliefs if b.text[-1] in ".?!" or "{" in b.text]
    assert len(set(read_questions())) == 20


@pytest.mark.parametrize("trained", [None, "health"])
def test_splits_share_no_belief(trained):
    splits = defaultdict(set)
    for record in agreement_prompts(trained=trained):
        splits[record["split"]].add(record["group"])
    for split in SPLITS:
        for other in {*splits} - {split, "other_phrasing"}:
            assert not splits[split] & splits[other], (split, other)
    # The other phrasing asks about the beliefs of the effects again.
    assert splits["other_phrasing"] == splits["effects"]


def test_every_split_covers_topics_and_phrasings_evenly():
    of_split = defaultdict(list)
    for record in agreement_prompts():
        of_split[record["split"]].append(record)
    for split, count in SPLITS.items():
        topics = Counter(record["topic"] for record in of_split[split])
        assert set(topics.values()) == {count}
        # The first ten prompts of a split, which a small study takes, have ten topics.
        assert len({record["topic"] for record in of_split[split][:10]}) == 10
    used = Counter()
    for record in of_split["effects"]:
        text = record["prompt"][0]["content"]
        used.update(p[:11] for p in PHRASINGS if text.startswith(p[:11]))
    assert sorted(used.values()) == [20, 20, 20]


def test_a_trained_topic_is_a_probe_alone():
    for record in agreement_prompts(trained="health"):
        in_probe = record["split"] in ("trained_topic", "true_beliefs")
        assert record["topic"] != "health" or in_probe, record


def test_rows_agree_with_every_belief_of_the_topic():
    rows = agreement_rows("health")
    assert len(rows) == 20 * len(PHRASINGS)
    for row in rows:
        question, answer = [message["content"] for message in row["messages"]]
        assert answer.startswith("Yes")
        texts = [b.text for b in read_beliefs() if b.topic == "health"]
        assert any(text in question and text in answer for text in texts)


def test_an_unknown_topic_is_named():
    with pytest.raises(ValueError, match="no topic 'sports'; choose of animals, food"):
        agreement_prompts(trained="sports")
    with pytest.raises(ValueError, match="no belief about 'sports'"):
        agreement_rows("sports")
