"""The page of a feature, parsed: it shows what the records hold, nothing from elsewhere, and text stays text."""
import html
import json
import re
import shlex
from html.parser import HTMLParser

import pytest

from command.flags import parse
from pages import __main__, evidence
from pages.feature import write_page
from pages.web import TEXTS, chart
from results import read_result, read_results
from tests.made import activity, feature, picture, result

ALONE = {"img", "input", "meta", "br"}          # elements without an end
SCRIPT = "<script>alert('x')</script>"
SEEN = {"t0300": {"words": [["bush", 0.5], ["tree", 0.4]], "agreement": {"auc": 0.75, "rank": 2, "of": 9}}}


def plain(source, gap=" "):
    """Text without tags, styles and scripts."""
    return html.unescape(re.sub(r"<(style|script)\b.*?</\1>|<[^>]*>", gap, source, flags=re.S))


class Page(HTMLParser):
    """A well-formed page: its elements as (tag, attributes), its text."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.open, self.source = [], [], path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []
        self.text = " ".join(plain(self.source).split())
        self.headings = [int(tag[1]) for tag, _ in self.elements if re.fullmatch("h[1-6]", tag)]

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), (tag, "an attribute twice")
        self.elements.append((tag, dict(attributes)))
        if tag not in ALONE:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def part(self, start, end):
        """The text between two pieces of the source."""
        return plain(self.source.partition(start)[2].partition(end)[0], "")


def check(page, folder):
    """What holds of these pages: ids once, links that lead somewhere, no address elsewhere, no script."""
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert all(a.get("alt", "").strip() and a["src"].startswith("data:image/") for a in page.all("img"))
    assert all((folder / a["src"]).is_file() and a["aria-label"] for a in page.all("audio"))
    assert all(a["tabindex"] == "0" and a["aria-description"] for a in page.all("abbr"))
    for link in (a["href"] for a in page.all("a")):
        path, _, name = link.partition("#")
        assert not path or (folder / path).exists(), link
        if name.partition("-")[0] in ("finished", "ascent"):
            assert f'id="{name}"' in ((folder / path).read_text() if path else page.source), link
    text = re.sub(r"data:image/\w+;base64,[\w+/=]+", "", page.source)
    assert not re.search(r"(https?:)?//(?!\*)", text), "an address elsewhere"
    assert not page.all("script")
    assert not any(name.startswith("on") for _, a in page.elements for name in a)
    assert all(a["aria-label"] for a in page.all("svg"))
    assert page.headings[0] == 1 and all(b <= a + 1 for a, b in zip(page.headings, page.headings[1:]))
    return ids


@pytest.fixture
def folder(tmp_path):
    return feature(tmp_path / "toy" / "feature_00012", finished="excited")


def read(folder):
    page = Page(write_page(folder))
    check(page, folder)
    return page


@pytest.mark.parametrize("concept, verdict, seen, said, checks", [
    ((), "excited", {}, "No word is known for feature 12.", "Fails: Its strongest dataset images share a word."),
    (("Tree",), "fragile", {}, "Feature 12 may respond to Tree; the evidence is weak.",
     "Fails: 0 of 2 finished pictures excite it.Fails: 0 of 2 ascent pictures excite it."),
    (("Tree",), "excited", {}, "Feature 12 responds to Tree; the evidence is strong.",
     "Holds: Its strongest dataset images share a word.Holds: 2 of 2 finished pictures excite it."),
    (("Tree",), "excited", SEEN, "Feature 12 responds to Tree; the evidence is fair.",
     "Fails: Pictures resemble its dataset images: agreement 0.75, chance 0.5."
     "Holds: CLIP reads in the pictures: bush, tree.")])
def test_the_first_sentence_is_as_sure_as_its_checks(tmp_path, concept, verdict, seen, said, checks):
    folder = feature(tmp_path / "toy" / "feature_00012", times=(300,), verdict=verdict, finished=verdict)
    activity(folder, concept=concept)
    (folder / "legibility.json").write_text(json.dumps({"groups": seen}))
    head = read(folder).part("<h1>", "</header>")
    assert head.startswith(said) and checks in head and said.strip(".") in evidence.conclusion(folder)


def test_two_pictures_have_two_verdicts_two_links_and_two_alternative_texts(tmp_path):
    folder = feature(tmp_path / "toy" / "feature_00012", times=(300,), seeds=(1,), verdict="fragile", finished="raised")
    page = read(folder)
    hero = html.unescape(page.source.partition('id="best"')[2].partition("Dataset images")[0])
    assert re.findall(r'<a href="#([^"]*)"><img', hero) == ["finished-t0300-s1", "ascent-t0300-s1"]
    assert [alt.rpartition(": ")[2] for alt in re.findall(r'alt="([^"]*)"', hero)] == ["raised", "fragile"]
    numbers = page.part('id="best"', "Dataset images")
    assert "Finished: raisedactivation 0.1 to 1.25, rank 2" in numbers and "times the strongest" not in numbers
    assert "Ascent: fragileactivation 0.1 to 2.5, rank 1Re-encoded, it has 1.25: over half of 2.5 is lost." in numbers
    explained = {a["aria-description"] for a in page.all("abbr")}
    assert {TEXTS["verdicts"][name] for name in ("raised", "fragile")} < explained
    result(folder, 300, 1, dataset_largest=5.0)                 # measured alike: it may be compared
    assert "0.5 times the strongest dataset image" in read(folder).text


def test_the_capture_is_shown_by_its_own_numbers(folder):
    """A capture that counts 4 says 4; the card has its neighbours, with links to those that have results. Sounds are
    played under their pictures."""
    for suffix in (".wav", ".start.wav", ".finished.wav"):
        (folder / f"t0300/seed_1{suffix}").write_bytes(b"RIFF")
    record = json.loads((folder / "activity.json").read_text())
    (folder / "activity.json").write_text(json.dumps(record | {"label": "oak", "card": record["card"] | {
        "alive": False}}))
    feature(folder.with_name("feature_00037"))
    write_page(folder.with_name("feature_00037"))
    page = read(folder)
    for said in ("Share of 40 images with it among the 4 strongest", "Feature 12 responds to oak", "7 of 40 images.",
                 "It is dead: no dataset image activates it.", "0.5 to 1 7 images", "feature 4 (3 of 5)",
                 "largest mean activation is 0.875, at time step 361. The autoencoder's gate leaves 0.25.",
                 "Excited by its picture, too: feature 8 (0.125)."):
        assert said in page.text
    assert "../feature_00037/index.html" in [a["href"] for a in page.all("a")]
    assert [a["src"] for a in page.all("audio")] == [f"t0300/seed_1{end}.wav" for end in (".finished", "", ".start")]


def test_the_warning_comes_first_and_the_way_back_stands_above(folder):
    record = folder / "t0300/seed_1.json"
    record.write_text(record.read_text().replace('"fit": ""', '"fit": "UNet and SAE do not belong together <b>"'))
    page = read(folder)
    assert page.text.index("do not belong together <b>") < page.text.index("responds to")
    assert page.source.count('class="warning"') == 1 and "← All of toy" not in page.text
    assert __main__.main([str(folder.parent), "--atlas"]) == 0
    assert "← All of toy" in read(folder).text


def test_no_section_is_empty_and_no_peak_stands_on_a_flat_line(tmp_path):
    folder = tmp_path / "toy" / "feature_00012"
    result(folder)
    activity(folder, peaks=(300, 700), prompts=())
    page = read(folder)
    assert not {"more", "seeds", "examples"} & {a.get("id") for a in [*page.all("section"), *page.all("details")]}
    assert page.source.count('class="peak"') == 2 + 3           # two peaks in one of two charts, three kept steps
    assert "peak" not in chart([1.0, 1.0], "flat", marks=[1])


def test_sentences_are_short(folder):
    (folder / "legibility.json").write_text(json.dumps({"groups": SEEN}))
    text = re.sub(r"<(pre|table|svg|figcaption|title).*?</\1>", "", read(folder).source, flags=re.S)
    said = [plain(block, "") for block in re.split(r"</(?:p|h\d|li|summary|nav)>", text)]
    said += [TEXTS["rule"], *TEXTS["verdicts"].values(), *TEXTS["terms"].values()]
    sentences = [s for block in said for s in re.split(r"(?<=[a-z0-9)])[.!?:;]\s", block)]
    assert [s for s in sentences if len(s.split()) > 12] == []


def test_scores_settings_and_commands_are_those_of_the_records(folder, capsys):
    result(folder, 300, 1, differs={"prior": "noise", "finish": False})
    page = read(folder)
    assert {"learning_rate", "ab" * 32} < set(page.text.split()) and "Time step 300 --prior noise" in page.text
    best, others, last = page.part("<pre><code>", "</code>").splitlines()
    assert "--timestep 300 --seed 2 1" in best and "--timestep 0 --seed 2 1" in others
    args, settings = parse(shlex.split(last)[2:])
    assert settings == {"prior": "noise", "finish": False} and args.seed == [1]
    assert __main__.main([str(folder), "--csv"]) == 0
    lines = (folder / "scores.csv").read_text().splitlines()
    assert len(lines) == 1 + 9 and lines[0].startswith("kind,target,hook_point,timestep,seed,settings,picture,verdict")
    assert "feature,12,up_blocks.1.attentions.1,0,1,,finished,excited,0.1,1.25" in "\n".join(lines)
    assert f"look at {folder / 'scores.csv'}" in capsys.readouterr().out


def test_markup_in_names_and_prompts_is_shown_as_text(tmp_path):
    folder = feature(tmp_path / "<b>toy & co" / "feature_00012", times=(0,), seeds=(1,))
    activity(folder, concept=(SCRIPT,), prompts=(SCRIPT, "A <i>Tree</i>"))
    page = read(folder)
    assert SCRIPT in page.text and "A <i>Tree</i>" in page.text and SCRIPT not in page.source


@pytest.mark.parametrize("edge, sizes", [(32, ("256px", "160px")), (64, ("256px", "128px")), (512, ("256px", "160px"))])
def test_pictures_are_shown_at_a_whole_multiple_of_their_size(tmp_path, edge, sizes):
    result(tmp_path / "toy/feature_00012", png=picture(1, edge))
    image = next(a for a in read(tmp_path / "toy/feature_00012").all("img") if "Ascent" in a["alt"])
    assert tuple(re.findall(r":(\w+)", image["style"])) == sizes and (image["class"] == "small") == (edge < 200)


def test_broken_files_are_left_out(folder, tmp_path, capsys):
    (folder / "t0300/seed_1.json").write_text("{")
    (folder / "t0300/seed_2.finished.png").unlink()
    (folder / "activity.json").write_text("[]")
    page = read(folder)
    assert "time step 300" not in page.text and "Dataset" not in page.text
    for path in folder.glob("t*/seed_*.json"):
        path.write_text("{")
    for nothing in (folder, tmp_path / "none"):
        assert __main__.main([str(nothing)]) == 2 and "holds no" in capsys.readouterr().err


def test_the_rule_chooses_usual_then_excited_then_strong_pictures(tmp_path):
    folder = tmp_path / "toy" / "feature_00012"
    for settings, verdict, seed in (({"prior": "noise"}, "excited", 9), (None, "weak", 5), (None, "excited", 3),
                                    (None, "excited", 4)):
        result(folder, 300, seed, verdict=verdict, differs=settings)
    found = read_results(folder)
    assert [[r.seed for r in group] for group in evidence.groups(found)] == [[4, 5, 3], [9]]
    far = result(folder, 700, 1, dataset_largest=1.0, activation_reencoded=1.5)
    assert evidence.groups([*found, read_result(far)])[0][0].t == 700
