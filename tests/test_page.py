"""The page of a feature, parsed: it shows what the records hold, nothing from elsewhere, and text stays text."""
import html
import json
import re
import shlex
from html.parser import HTMLParser

import pytest

from command.parser import parse
from pages import __main__, evidence, words
from pages.feature import write_page
from pages.web import asset, chart
from results import read_result, read_results
from tests.made import activity, change, feature, picture, result

ALONE = {"img", "input", "meta", "br", "line", "path", "polyline", "rect"}      # elements without an end
SCRIPT = "<script>alert('x')</script>"


class Page(HTMLParser):
    """Elements as (tag, attributes), all text outside of style and script, and what a viewer would trip over."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.open, self.text, self.scripts, self.headings = [], [], "", [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), (tag, "an attribute twice")
        self.elements.append((tag, dict(attributes)))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in ALONE:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self.open[-1:] != ["style"]:
            self.text += data + " "

    def all(self, *tags):
        return [attributes for tag, attributes in self.elements if tag in tags]


def check(page, folder, script=""):
    """What holds of every page: ids once, links that lead somewhere, no address elsewhere, no script but its own."""
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert all(a.get("alt", "").strip() and a["src"].startswith("data:image/") for a in page.all("img"))
    assert all((folder / a["src"]).is_file() and a["aria-label"] for a in page.all("audio"))
    for link in (a["href"] for a in page.all("a")):
        path, _, name = link.partition("#")
        if path:
            assert (folder / path).exists(), link
        if name.partition("-")[0] in ("finished", "ascent"):
            assert f'id="{name}"' in ((folder / path).read_text() if path else page.source), link
    text = re.sub(r"data:image/\w+;base64,[\w+/=]+", "", page.source)
    assert not re.search(r"(https?:)?//(?!\*)", text), "an address elsewhere"
    assert page.scripts == ([asset(script)] if script else [])
    assert not any(name.startswith("on") for _, a in page.elements for name in a)
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in page.all("svg"))
    assert page.headings[0] == 1 and all(b <= a + 1 for a, b in zip(page.headings, page.headings[1:]))
    return ids


def sentences(page):
    """The page's own sentences, as far as they end in a full stop."""
    text = re.sub(r"<(pre|table|style|svg|figcaption|title).*?</\1>", "", page.source, flags=re.S)
    blocks = re.split(r"</(?:p|h\d|li|dd|dt|summary|div|nav|label)>", text)
    for block in blocks:
        plain = html.unescape(re.sub(r"<[^>]*>", "", block))
        yield from (s.strip() for s in re.split(r"(?<=[a-z0-9)][.!?:;])\s", plain) if s.strip())


@pytest.fixture
def folder(tmp_path):
    return feature(tmp_path / "toy" / "feature_00012", finished="excited")


def read(folder, others=()):
    return Page(write_page(folder, others))


def test_the_first_sentence_says_what_it_responds_to_and_how_surely(folder):
    page = read(folder)
    check(page, folder)
    head = re.sub(r"<[^>]*>", "", page.source.partition("<h1>")[2].partition("</header>")[0])
    assert head.startswith("Feature 12 responds to Tree; the evidence is strong.")
    for text in ("Its strongest dataset images share a word.", "2 of 2 finished pictures excite it.",
                 "2 of 2 ascent pictures excite it."):
        assert f"Holds: {text}" in head
    assert evidence.conclusion(folder) == ("Feature 12 responds to Tree; the evidence is strong: 3 of 3 checks hold")


@pytest.mark.parametrize("concept, verdict, said", [
    ((), "excited", "No word is known for feature 12"), (("Tree",), "fragile", "Feature 12 may respond to Tree; the "
                                                         "evidence is weak"),
    (("Tree",), "excited", "Feature 12 responds to Tree; the evidence is strong")])
def test_the_evidence_is_as_strong_as_its_checks(tmp_path, concept, verdict, said):
    folder = feature(tmp_path / "toy" / "feature_00012", verdict=verdict, finished=verdict)
    activity(folder, concept=concept)
    assert said in evidence.conclusion(folder)
    check(read(folder), folder)


def test_words_and_agreement_of_clip_count_where_they_were_measured(folder):
    groups = {"t0300": {"words": [["bush", 0.5], ["tree", 0.4]], "agreement": {"auc": 0.75, "rank": 2, "of": 9}}}
    (folder / "legibility.json").write_text(json.dumps({"groups": groups}))
    text = " ".join(read(folder).text.split())
    assert "Fails: Pictures resemble its dataset images: agreement 0.75, chance 0.5." in text
    assert "Holds: CLIP reads in the pictures: bush, tree." in text and "the evidence is fair" in text


def test_two_pictures_have_two_verdicts_two_links_and_two_alternative_texts(tmp_path):
    folder = feature(tmp_path / "toy" / "feature_00012", times=(300,), seeds=(1,), verdict="fragile", finished="raised")
    page = read(folder)
    ids = check(page, folder)
    hero = html.unescape(page.source.partition('id="best"')[2].partition("Dataset images")[0])
    assert re.findall(r'<a href="#([^"]*)"><img', hero) == ["finished-t0300-s1", "ascent-t0300-s1"]
    assert {"finished-t0300-s1", "ascent-t0300-s1"} <= set(ids)
    alts = re.findall(r'alt="([^"]*)"', hero)
    assert [alt.rpartition(": ")[2] for alt in alts] == ["raised", "fragile"] and len(set(alts)) == 2
    numbers = re.sub(r"<[^>]*>", "", hero)
    assert "Finished: raisedactivation 0.1 to 1.25, rank 2" in numbers
    assert "Ascent: fragileactivation 0.1 to 2.5, rank 1Re-encoded, it has 1.25: over half of 2.5 is lost." in numbers
    assert words.VERDICTS["fragile"] in page.source and words.VERDICTS["raised"] in page.source


def test_sounds_are_played_under_their_pictures(folder):
    for suffix in (".wav", ".start.wav", ".finished.wav"):
        (folder / f"t0300/seed_1{suffix}").write_bytes(b"RIFF")
    page = read(folder)
    check(page, folder)
    assert [a["src"] for a in page.all("audio")] == [f"t0300/seed_1{end}.wav" for end in (".finished", "", ".start")]
    assert "media-src file: 'self'" in page.source


def test_the_capture_s_own_top_is_shown(folder):
    """A capture that counts 4 says 4."""
    text = " ".join(read(folder).text.split())
    assert "Share of 40 images with it among the 4 strongest" in text and "20 strongest" not in text


def test_times_the_strongest_image_only_where_it_was_measured_alike(folder):
    assert "times the strongest" not in read(folder).text
    result(folder, 300, 1, dataset_largest=5.0)
    assert "0.5 times the strongest dataset image" in read(folder).text


def test_the_warning_of_the_fit_check_comes_first(folder):
    change(folder / "t0300/seed_1.json", fit="UNet and SAE do not belong together <b>")
    page = read(folder)
    assert page.text.index("do not belong together <b>") < page.text.index("responds to")
    assert page.source.count('class="warning"') == 1


def test_no_section_is_empty_and_no_peak_stands_on_a_flat_line(tmp_path):
    folder = tmp_path / "toy" / "feature_00012"
    result(folder)
    activity(folder, peaks=(300, 700), prompts=())
    page = read(folder)
    ids = check(page, folder)
    assert "No picture" not in page.text and not {"more", "seeds", "examples"} & set(ids)
    assert page.source.count('class="peak"') == 2 + 3           # two peaks in one of two charts, three kept steps
    assert "peak" not in chart([1.0, 1.0], "flat", 1, marks=[1])


def test_the_card_names_neighbours_and_counts_images(folder):
    card = {"images": 40, "active": 7, "histogram": [[0, 0, 33], [0.5, 1.0, 7]], "alive": False, "timestep": 361,
            "largest": 0.875, "gated": 0.25, "nearest": [[37, 0.75]], "examples": 5, "together": [[4, 3]]}
    record = json.loads((folder / "activity.json").read_text())
    (folder / "activity.json").write_text(json.dumps(record | {"card": card, "label": "oak"}))
    page = read(folder, ["feature_00012", "feature_00037"])
    text = " ".join(page.text.split())
    assert "Feature 12 responds to oak" in text and "It is dead: no dataset image activates it." in text
    assert "Its largest mean activation is 0.875, at time step 361." in text
    assert "The autoencoder's gate leaves 0.25. It is active in 7 of 40 images." in text
    assert "0.5 to 1 7 images" in text and "feature 37 (0.75)" in text and "feature 4 (3 of 5)" in text
    assert "../feature_00037/index.html" in [a["href"] for a in page.all("a")]


def test_the_way_back_to_the_atlas(folder):
    assert "← All of toy" not in read(folder).text
    assert __main__.main([str(folder.parent), "--atlas"]) == 0
    assert "← All of toy" in read(folder).text
    check(read(folder), folder)


def test_sentences_are_short(folder):
    groups = {"t0300": {"words": [["bush", 0.5]], "agreement": {"auc": 0.75, "rank": 2, "of": 9}}}
    (folder / "legibility.json").write_text(json.dumps({"groups": groups}))
    said = [*sentences(read(folder)), *words.VERDICTS.values(), *words.TERMS.values(), words.RULE]
    long = [s for text in said for s in re.split(r"(?<=[a-z])[.:] ", text) if len(s.split()) > 12]
    assert long == []


def test_terms_are_explained_where_they_stand(folder):
    page = read(folder)
    assert all(a["tabindex"] == "0" and a["aria-description"] for a in page.all("abbr"))
    assert {"t0300", "activation"} & set(words.TERMS) == {"activation"}
    said = {a["aria-description"] for a in page.all("abbr")}
    assert words.VERDICTS["excited"] in said and words.TERMS["rank"].format(kind="feature") in said


def test_every_score_and_setting_is_there(folder):
    result(folder, 300, 1, differs={"learning_rate": 0.5})
    page = read(folder)
    check(page, folder)
    assert "learning_rate" in page.text and "sha256 " + "ab" * 32 in page.text
    rows = page.source.partition('aria-label="Scores"')[2].partition("</table>")[0].count("<tr>")
    assert rows == 1 + 2 * 4 + 1
    assert "Time step 300, --learning-rate 0.5" in page.text


def test_commands_are_ones_that_featviz_reads(folder):
    found = read_results(folder)
    result(folder, 300, 1, differs={"prior": "noise", "finish": False})
    first, second, other = words.commands(read_results(folder))
    assert "--timestep 0 --seed 1 2" in first and "--timestep 300 --seed 1 2" in second and len(found) == 4
    args, settings = parse(shlex.split(other)[2:])
    assert settings == {"prior": "noise", "finish": False} and args.seed == [1]


def test_markup_in_names_and_prompts_is_shown_as_text(tmp_path):
    folder = feature(tmp_path / "<b>toy & co" / "feature_00012")
    activity(folder, concept=(SCRIPT,), prompts=(SCRIPT, "A <i>Tree</i>"))
    page = read(folder)
    check(page, folder)
    assert SCRIPT in page.text and "A <i>Tree</i>" in page.text and SCRIPT not in page.source


def test_pictures_are_shown_at_a_whole_multiple_of_their_size(tmp_path):
    for edge, sizes in ((32, ("256px", "160px")), (64, ("256px", "128px")), (128, ("256px", "128px")),
                        (512, ("256px", "160px"))):
        folder = feature(tmp_path / str(edge) / "feature_00012", times=(0,), seeds=(1,), png=picture(1, edge))
        image = next(a for a in read(folder).all("img") if "Ascent" in a["alt"])
        assert tuple(re.findall(r":(\w+)", image["style"])) == sizes
        assert (image.get("class") == "small") == (edge < 200)


def test_broken_files_are_left_out(folder):
    (folder / "t0300/seed_1.json").write_text("{")
    (folder / "t0300/seed_2.finished.png").unlink()
    (folder / "activity.json").write_text("[]")
    page = read(folder)
    check(page, folder)
    assert "time step 300" not in page.text and "Dataset" not in page.text
    for path in folder.glob("t*/seed_*.json"):
        path.unlink()
    with pytest.raises(ValueError, match="holds no finished result"):
        write_page(folder)


def test_a_dataset_image_from_elsewhere_is_not_shown(folder, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture(5))
    record = json.loads((folder / "activity.json").read_text())
    record["examples"]["300"] = [{"file": str(secret), "prompt": "p", "activation": 1.0}]
    (folder / "activity.json").write_text(json.dumps(record))
    assert evidence.read_activity(folder).examples == {300: []}


def test_the_rule_chooses_usual_then_excited_then_strong_pictures(tmp_path):
    folder = tmp_path / "toy" / "feature_00012"
    for settings, verdict, seed in (({"prior": "noise"}, "excited", 9), (None, "weak", 5), (None, "excited", 3),
                                    (None, "excited", 4)):
        result(folder, 300, seed, verdict=verdict, differs=settings)
    found = read_results(folder)
    assert evidence.best(found).seed == 4
    assert [[r.seed for r in group] for group in evidence.groups(found)] == [[4, 5, 3], [9]]
    far = result(folder, 700, 1, dataset_largest=1.0, activation_reencoded=1.5)
    assert evidence.best([*found, read_result(far)]).t == 700


def test_scores_as_a_table(folder, capsys):
    assert __main__.main([str(folder), "--csv"]) == 0
    lines = (folder / "scores.csv").read_text().splitlines()
    assert len(lines) == 1 + 8 and lines[0].startswith("kind,target,hook_point,timestep,seed,settings,picture,verdict")
    assert "feature,12,up_blocks.1.attentions.1,0,1,,finished,excited,0.1,1.25" in "\n".join(lines)
    assert f"look at {folder / 'scores.csv'}" in capsys.readouterr().out


def test_a_folder_without_results_ends_in_one_line(tmp_path, capsys):
    assert __main__.main([str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
