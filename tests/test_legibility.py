"""The three measures by hand, on embeddings that are unit vectors in the plane; and the words that ship."""
import math
from itertools import permutations

import pytest
import torch

from activity.capture import OBJECTS, STYLES
from legibility import WORDS, agreement, auc, name, sameness, vocabulary


def turned(*degrees):
    """Unit vectors at these angles: (n, 2); two of them have the similarity cos(difference)."""
    a = torch.tensor(degrees).double().deg2rad()
    return torch.stack([a.cos(), a.sin()], dim=1)


def test_auc_by_hand():
    """Of the six pairs of {1, 2} and {0, 1, 3} the first is larger in 3 and equal in 1."""
    assert auc([1, 2], [3, 0, 1]) == pytest.approx(3.5 / 6)
    assert auc([2, 3], [0, 1]) == 1.0 and auc([0, 1], [2, 3]) == 0.0 and auc([5, 5], [5]) == 0.5
    with pytest.raises(ValueError, match="each side"):
        auc([], [1])


def test_agreement_by_hand():
    """Pictures at 0 degrees: an example's score is the cosine of its angle. 10 and 50 against 30, 40 | 80, 90: of the
    eight pairs 10 wins 4 and 50 wins 2. The mean 0.81 of 10 and 50 is below that of 30 and 40, 0.82."""
    found = agreement(turned(0, 0), turned(10, 50), [turned(30, 40), turned(80, 90)])
    assert found == {"auc": pytest.approx(6 / 8), "rank": 2, "of": 3}
    assert agreement(turned(-20, 20), turned(0), [turned(90), turned(180)]) == {"auc": 1.0, "rank": 1, "of": 3}
    assert agreement(turned(0), turned(5), [turned(5), turned(90)]) == {"auc": 0.75, "rank": 1, "of": 3}
    assert agreement(turned(180), turned(0), [turned(90), turned(170)]) == {"auc": 0.0, "rank": 3, "of": 3}


def test_agreement_is_of_the_mean_over_all_pictures():
    """Pictures at 0 and 90 look like 45, though neither example is near to one of them alone."""
    found = agreement(turned(0, 90), turned(45), [turned(0), turned(90)])
    assert found["auc"] == 1.0 and found["rank"] == 1
    assert agreement(turned(0), turned(45), [turned(0), turned(90)])["auc"] == 0.5


def test_sameness_by_hand():
    """At 0, 60 and 180 degrees the pairs have the similarities 1/2, -1 and -1/2; weights 1, 2, 3 make their products 2,
    3 and 6: (2 / 2 - 3 - 6 / 2) / 11."""
    e = turned(0, 60, 180)
    assert sameness(e) == pytest.approx(-1 / 3)
    assert sameness(e, torch.tensor([1.0, 2, 3])) == pytest.approx(-5 / 11)
    assert sameness(e, torch.tensor([10.0, 20, 30])) == pytest.approx(-5 / 11)              # a factor cancels
    assert sameness(e, torch.tensor([1.0, 5, 0])) == pytest.approx(1 / 2)                   # what is silent has no say
    assert sameness(turned(7, 7, 7)) == pytest.approx(1)
    for bad in ([0.0, 0, 3], [1.0, 2, -1]):
        with pytest.raises(ValueError, match="at least two"):
            sameness(e, torch.tensor(bad))
    with pytest.raises(ValueError, match="at least two"):
        sameness(e[:1])


def test_sameness_is_the_papers_mean_over_pairs():
    g = torch.Generator().manual_seed(0)
    e = torch.nn.functional.normalize(torch.randn(6, 5, generator=g).double(), dim=1)
    a = torch.rand(6, generator=g).double()
    pairs = list(permutations(range(6), 2))
    expected = sum(a[i] * a[j] * (e[i] @ e[j]) for i, j in pairs) / sum(a[i] * a[j] for i, j in pairs)
    assert sameness(e, a) == pytest.approx(expected.item(), abs=1e-12)


def test_name_by_hand():
    """Pictures around 0 degrees, the mean picture at (0, 1/2) or nowhere: words at 0, 60, -60 and 180 degrees."""
    words, embeddings = ["rose", "tree", "fish", "cat"], turned(0, 60, -60, 180)
    found, margin = name(turned(10, -10), torch.zeros(2).double(), words, embeddings)
    assert [w for w, _ in found] == ["rose", "tree", "fish"] or [w for w, _ in found] == ["rose", "fish", "tree"]
    assert [s for _, s in found] == pytest.approx([1, 0.5, 0.5]) and margin == pytest.approx(0.5)
    mean = torch.tensor([1.0, 0.5]).double()                        # what is left points to -90 degrees
    found, margin = name(turned(0), mean, words, embeddings, top=1)
    assert found == [("fish", pytest.approx(math.cos(math.pi / 6)))] and margin == pytest.approx(math.cos(math.pi / 6))


def test_what_all_words_share_has_no_say():
    g = torch.Generator().manual_seed(1)
    pictures, mean, embeddings, shared = (torch.randn(*shape, generator=g) for shape in ((3, 4), (4,), (5, 4), (4,)))
    words = [*"abcde"]
    (a, margin), (b, other) = (name(pictures, mean, words, e) for e in (embeddings, embeddings + 7 * shared))
    assert [w for w, _ in a] == [w for w, _ in b] and margin == pytest.approx(other, abs=1e-5)


def test_the_vocabulary():
    """Each word once, in lower case, sorted in its group; UnlearnCanvas' objects and styles are among them."""
    words = vocabulary()
    groups = [group.splitlines() for group in WORDS.read_text(encoding="utf-8").split("\n\n")]
    lines = [line for group in groups for line in group[1:]]
    assert all(group[0].startswith("# ") and "{}" in group[0] and group[1:] == sorted(group[1:]) for group in groups)
    assert len(set(lines)) == len(lines) == len(words) and 2000 <= len(lines) <= 2600
    assert all(line == line.lower().strip() and line[0].isalpha() for line in lines)
    assert all(words[o.lower()] == f"a picture of {o.lower()}" for o in OBJECTS)
    assert all(words[s] == f"a picture in {s} style" for s in (t.replace("_", " ").lower() for t in [*STYLES, "photo"]))
    assert words["rose"] == "a picture of rose" and not words.keys() & {"", "#"}


def test_a_vocabulary_without_headings(tmp_path):
    (tmp_path / "words.txt").write_text("rose\n\n# styles: drawn in {}\nink \n# others\nfoam\n", encoding="utf-8")
    assert vocabulary(tmp_path / "words.txt") == {"rose": "rose", "ink": "drawn in ink", "foam": "foam"}
