"""The page of a feature, parsed: it holds what the records hold, nothing from elsewhere, and text stays text."""
import base64
import dataclasses
import html
import json
import re
import shlex
from html.parser import HTMLParser

import numpy as np
import pytest
from safetensors.numpy import save_file

import featviz
from ascent import kept_steps
from config import Job, configure
from pages import again, files, words
from pages import feature as pages
from pages.read import PROJECT, read_activity, read_results
from pages.web import asset
from tests.made import activity, feature, picture
from weights.load import load

ALONE = {"img", "input", "meta", "br", "link", "line", "path", "polyline", "rect"}      # elements without an end
SCRIPT = "<script>alert('x')</script>"


class Page(HTMLParser):
    """Elements as (tag, attributes), all text outside of style and script, and what a viewer would trip over."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.open, self.text, self.scripts = [], [], "", []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), (tag, "an attribute twice")
        self.elements.append((tag, dict(attributes)))
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


def write(folder, others=()):
    return Page(pages.write_page(folder, others))


@pytest.fixture
def folder(tmp_path):
    return feature(tmp_path / "toy" / "feature_00012", prior="steer")


def check(parsed, folder):
    """What holds of every page."""
    ids = [a["id"] for _, a in parsed.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert all(a.get("alt", "").strip() and a["src"].startswith("data:image/") for a in parsed.all("img"))
    for link in (a["href"] for a in parsed.all("a")):
        assert link[1:] in ids if link.startswith("#") else (folder / link).exists(), link
    text = re.sub(r"data:image/\w+;base64,[\w+/=]+", "", parsed.source)
    assert not re.search(r"(https?:)?//(?!\*)", text), "an address elsewhere"
    assert all(a == {"method": "dialog"} for a in parsed.all("link", "iframe", "object", "base", "form"))
    assert parsed.scripts == [asset("feature.js")]
    assert not any(name.startswith("on") for _, a in parsed.elements for name in a)
    labels = {a["for"] for a in parsed.all("label")}
    assert all(a["id"] in labels for a in parsed.all("input"))
    assert {a["data-view"] for a in parsed.all("button") if "data-view" in a} <= {a["id"] for a in parsed.all("dialog")}
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in parsed.all("svg"))
    return ids


def test_everything_is_there_and_reachable(folder):
    parsed = write(folder)
    ids = check(parsed, folder)
    for t in (0, 300):
        assert f"t{t:04d}" in ids
        for seed in (1, 2):
            assert {f"{name}-t{t:04d}-s{seed}" for name in ("open", "view", "slide", "name")} <= set(ids)
    assert {"when", "steps", "where", "priors", "scores", "beside", "raw", "again", "settings"} <= set(ids)
    peaks = [a for a in parsed.all("a") if a["href"] == "#t0300" and "aria-label" in a]
    assert len(peaks) == 2                                      # one in each of the two charts
    assert parsed.source.count('class="heat"') == parsed.source.count('type="range"') == 4


def test_the_first_lines_say_what_matters(folder):
    head = write(folder).source.partition("</header>")[0]
    assert "<h1>Feature 12: <b>Tree</b></h1>" in head and "It seems to show Tree" in head
    assert ("At time step 300 the ascent took its activation from 0.1 to 3.5, 3.5 times that of the strongest of 40 "
            "images, rank 1: excited.") in head
    assert head.count("Dataset image: A Tree") == 2 and 'data-view="view-t0300-s2"' in head     # the third is gone


def test_how_to_read_it_stands_on_the_page(folder):
    """Every term of a caption and the rule of the verdicts; a verdict without words of its own is shown as it is."""
    path = folder / "t0000/seed_1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"verdict": "uncertain"}))
    parsed = write(folder)
    box = html.unescape(parsed.source.partition('<aside id="how">')[2].partition("</aside>")[0])
    terms = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", box)
    assert [name for name, _ in terms] == ["hook point", "time step", "activation", "rank", "verdict", *words.VERDICTS]
    assert "up_blocks.1.attentions.1" in terms[0][1] and all(text in words.VERDICTS.values() for _, text in terms[5:])
    assert "seed 1: uncertain" in parsed.text
    assert parsed.text.count("0.1 to 2.5, 2.5 times the strongest image, rank 1") == 2


def test_results_that_were_not_made_alike_are_said_to_be(folder):
    """Code, weights, torch and whatever else a recipe names; time step and seed are no difference. Settings are one
    where a record does not say which of them are not usual: it is of an older version."""
    assert "unlike" not in check(write(folder), folder)
    config = {"num_steps": 2, "prior": "noise", "learning_rate": 0.5}
    for seed, changes in ((1, {"code": SCRIPT}), (2, {"config": config})):
        path = folder / f"t0300/seed_{seed}.json"
        record = json.loads(path.read_text())
        record["recipe"] = {k: v for k, v in record["recipe"].items() if k != "differs"} | changes
        path.write_text(json.dumps(record))
    parsed = write(folder)
    assert "unlike" in check(parsed, folder) and "Not all of these results were made in the same way" in parsed.text
    assert "not all come from the same version of the method" in parsed.text
    table = parsed.source.partition('<aside id="unlike">')[2].partition("</aside>")[0]
    assert re.findall(r'<th scope="col">(.*?)</th>', table) == ["results", "prior", "learning_rate", "code"]
    rows = [html.unescape(row).split("</td><td>") for row in re.findall(r"<tr><td>(.*?)</td></tr>", table)]
    assert rows == [["time step 0, seed 1, 2", "steer", "0.125", "not recorded"],
                    ["time step 300, seed 1", "steer", "0.125", SCRIPT[:20]],
                    ["time step 300, seed 2", "noise", "0.5", "not recorded"]]


def test_the_finished_picture_stands_first_and_the_ascent_s_beside_it(tmp_path):
    folder = feature(tmp_path / "toy" / "feature_00012", finished=2.25)
    parsed = write(folder)
    ids = check(parsed, folder)
    tiles = parsed.source.partition('id="t0300"')[2].partition("</section>")[0]
    captions = [re.sub(r"(<.*?>)+", "|", c) for c in re.findall(r"<figcaption>(.*?)</figcaption>", tiles)]
    assert captions[:2] == ["|seed 1, finished: raised|0.1 to 2.25, 2.25 times the strongest image, rank 2",
                            "|the ascent: excited|0.1 to 2.5, 2.5 times the strongest image, rank 1"]
    assert {f"{name}-t0300-s{seed}" for name in ("open", "open-ascent") for seed in (1, 2)} <= set(ids)
    hero = parsed.source.partition('<div class="hero">')[2].partition("</header>")[0]
    shown = re.findall(r'<img src="data:image/png;base64,([^"]+)"', hero)[:2]
    files = [folder / f"t0300/seed_1{suffix}" for suffix in (".finished.png", ".png")]
    assert [base64.b64decode(data) for data in shown] == [path.read_bytes() for path in files]
    assert words.MEANS in parsed.text and words.RULE.format(kind="feature") in parsed.text
    assert "The finished picture has 2.25, rank 2: raised." in parsed.text
    assert "Activation at each step of the finish" in parsed.text and "Then finished" in parsed.text
    rows = re.findall(r"<tr><td>(.*?)</td></tr>", parsed.source.partition('id="scores"')[2].partition("</table>")[0])
    assert [row.split("</td><td>")[:5] for row in rows[:2]] == [["0", "1", "finished", "raised", "0.1"],
                                                                ["0", "1", "ascent", "excited", "0.1"]]
    assert "feature 8" in parsed.source.partition('id="beside"')[2].partition("</table>")[0]


def test_without_a_finish_the_page_speaks_of_none(folder):
    parsed = write(folder)
    assert words.MEANS not in parsed.text and "inished" not in parsed.text.replace("finished result", "")
    assert 'class="pair"' not in parsed.source and words.RULE.format(kind="feature") in parsed.text


def test_the_seed_that_the_rule_puts_first_comes_first(folder):
    """Seed 2 excites it more when decoded and encoded again, until seed 1 does."""
    order = lambda: re.findall(r'id="open-t0300-s(\d)"', write(folder).source)
    assert order() == ["2", "1"]
    path = folder / "t0300/seed_1.json"
    record = json.loads(path.read_text())
    record["scores"]["activation_reencoded"] = 9.0
    path.write_text(json.dumps(record))
    assert order() == ["1", "2"] and 'data-view="view-t0300-s1"' in write(folder).source.partition("</header>")[0]


def test_results_of_other_settings_are_rows_side_by_side(folder):
    """Headed by what differs, as it is typed; the usual ones come first, on the page's top as well."""
    feature(folder, times=(300,), finished=9.0, differs={"spectral_filter": False, "num_steps": 5})
    parsed = write(folder)
    ids = check(parsed, folder)
    assert {"open-t0300-s1", "open-t0300-1a2b3c4d-s1", "view-t0300-1a2b3c4d-s2"} <= set(ids) and "unlike" not in ids
    row = parsed.source.partition('id="t0300"')[2].partition("</section>")[0]
    heads = re.findall(r'<h4>(.*?)</h4><div class="tiles( both)?">', row)
    assert heads == [("With usual settings", ""), ("With --no-spectral-filter --num-steps 5", " both")]
    assert "seed 1, --no-spectral-filter --num-steps 5: excited" in parsed.text
    assert 'data-view="view-t0300-s2"' in parsed.source.partition("</header>")[0]
    scores = parsed.source.partition('id="scores"')[2].partition("</table>")[0]
    assert scores.count("<td>usual</td>") == 4 and scores.count("<td>--no-spectral-filter --num-steps 5</td>") == 4


def test_samples_that_were_pulled_are_shown_as_starts(tmp_path):
    folder = feature(tmp_path / "toy" / "feature_00012", prior="guided")
    starts = write(folder).source.partition('id="priors"')[2].partition("</section>")[0]
    assert re.findall(r"<b>(.*?)</b>", starts) == ["guided, seed 1", "guided, seed 2"]


PLACES = {"among the results": ("toy/activity/images/7.png", True),
          "of another feature": ("toy/feature_00001/7.png", True),
          "anywhere": ("elsewhere/7.png", False), "by a way around": ("toy/feature_00012/../../elsewhere/7.png", False)}


@pytest.mark.parametrize("place", PLACES)
def test_only_pictures_of_results_and_weights_are_embedded(place, folder, tmp_path):
    """Whatever activity.json names: nothing else on the disk gets into a page."""
    (name, shown), secret = PLACES[place], picture(7)
    path = tmp_path / name
    (tmp_path / "elsewhere").mkdir()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(secret)
    doctor(folder, path)
    assert (base64.b64encode(secret).decode() in write(folder).source) == shown
    assert [e["file"] is not None for e in read_activity(folder)["examples"][300]] == [shown]


def doctor(folder, path):
    record = json.loads((folder / "activity.json").read_text())
    record["examples"] = {"300": [{"activation": 1.0, "prompt": "A Tree", "file": str(path)}]}
    (folder / "activity.json").write_text(json.dumps(record))


def test_a_link_to_a_picture_elsewhere_is_not_followed(folder, tmp_path):
    (tmp_path / "secret.png").write_bytes(picture(7))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    doctor(folder, folder / "link.png")
    assert read_activity(folder)["examples"][300][0]["file"] is None


def test_pictures_of_the_project_s_own_captures_are_embedded(folder):
    image = next((PROJECT / "weights/toy/activity/images").glob("*.jpg"))
    doctor(folder, image)
    assert read_activity(folder)["examples"][300][0]["file"] == image


def test_the_numbers_are_those_of_the_records(folder):
    parsed = write(folder)
    rows = re.findall(r"<tr><td>(.*?)</td></tr>", parsed.source.partition('id="scores"')[2].partition("</table>")[0])
    assert [row.split("</td><td>") for row in rows] == [
        [str(t), str(seed), "excited", "0.1", f"{1.5 + seed}", "2", f"{1 + seed / 4}", "1", f"{1.5 + seed}"]
        for t in (0, 300) for seed in (1, 2)]
    slider = next(a for a in parsed.all("input") if a["id"] == "slide-t0000-s2")
    assert (slider["min"], slider["max"], slider["value"]) == ("0", "2", "2")
    assert json.loads(slider["data-says"]) == [f"after {n} of 2 steps: activation {a}"
                                               for n, a in ((0, "0.1"), (1, "0.75"), (2, "3.5"))]
    bars = parsed.source.partition('id="beside"')[2].partition("</table>")[0]
    assert re.findall(r">(feature \d+)</th><td>([\d.]+)<", bars) == [("feature 12", "3.5"), ("feature 7", "0.5"),
                                                                     ("feature 9", "0.25")]
    assert re.findall(r"width:([\d.]+)%", bars) == ["100.0", "14.3", "7.1"]
    for value in ("0.125", "ab" * 32, "up_blocks.1.attentions.1", "cpu"):
        assert value in parsed.text


def test_where_is_dark_where_the_feature_is_not_excited(folder):
    """Of the map [[0, 1], [2, .5]] the strongest cell stays clear, the others are the darker the weaker."""
    dark = re.search(r'<svg class="heat".*?</svg>', write(folder).source)[0]
    assert sorted(re.findall(r'<path d="(M\d \d)h1v1h-1z" opacity="([\d.]+)"', dark)) == [
        ("M0 0", "0.80"), ("M0 1", "0.00"), ("M1 0", "0.40"), ("M1 1", "0.60")]


def test_text_from_elsewhere_stays_text(tmp_path):
    """Prompts, words, verdicts, settings and names that hold markup are shown, not run: none makes an element."""
    prompts = (f"A Tree {SCRIPT}", '"><img src=x onerror=alert(1)>', "A Tree")
    folder = feature(tmp_path / "toy" / "feature_00012", prompts=prompts, verdict=f"excited {SCRIPT}")
    record = json.loads((folder / "activity.json").read_text())
    (folder / "activity.json").write_text(json.dumps(record | {"concept": ["<b onclick=alert(2)>", "Tree"]}))
    path = folder / "t0300/seed_2.json"
    made = json.loads(path.read_text())
    made["recipe"] |= {"weights": f"w{SCRIPT}", "torch": "<i>2</i>", "config": {"prior": "noise", "<u>": SCRIPT},
                       "hook_point": "<s>up</s>"}
    made["recipe"]["fingerprints"] = {"<em>a": SCRIPT}
    path.write_text(json.dumps(made))
    parsed = write(folder)
    check(parsed, folder)
    assert f"A Tree {SCRIPT}" in parsed.text
    assert any(a["alt"] == '''Dataset image: "><img src=x onerror=alert(1)>''' for a in parsed.all("img"))
    assert all(text in parsed.text for text in ("<b onclick=alert(2)> Tree", f"excited {SCRIPT}", f"w{SCRIPT}"))
    assert not parsed.all("u", "em", "i", "s") and len(parsed.all("script")) == 1


OLD = {"others": None, "heat": None, "stored_steps": None, "nearest_channel": None}


def test_records_of_older_versions_make_a_page(tmp_path):
    folder = feature(tmp_path / "toy" / "feature_00012", **OLD)
    (folder / "activity.json").unlink()
    parsed = write(folder)
    ids = check(parsed, folder)
    assert "Which images excite it is not known" in parsed.text and "were not kept" in parsed.text
    assert not {"beside", "raw", "when", "where", "priors"} & set(ids) and 'type="range"' not in parsed.source


@pytest.mark.parametrize("verdict, scores", [
    ("non-finite at step 1", {"activation": None, "activation_reencoded": None}), ("silent", {"rank": None})])
def test_results_without_numbers_make_a_page(verdict, scores, tmp_path):
    whole = {"activation_start": 0.1, "activation": 0.0, "activation_no_noise": None, "activation_reencoded": 0.0,
             "rank": 1}
    folder = feature(tmp_path / "toy" / "feature_00012", verdict=verdict, scores=whole | scores, heat=[[None, None]],
                     others=[[3, None]],
                     history={"activation": [0.5, None], "moment": [None, None]})
    parsed = write(folder)
    check(parsed, folder)
    assert verdict in parsed.text and "None" not in parsed.text


def test_a_lone_result_with_nothing_but_the_least(tmp_path):
    """Scores and history may be empty, one step may have been kept, the dataset may hold no example."""
    folder = feature(tmp_path / "toy" / "channel_0004", times=(7,), seeds=(1,), scores={}, history={}, stored_steps=[0],
                     others=None, heat=None, nearest_channel=None)
    record = json.loads((folder / "activity.json").read_text())
    (folder / "activity.json").write_text(json.dumps(record | {"examples": {}, "peaks": [], "concept": []}))
    parsed = write(folder)
    check(parsed, folder)
    assert "<h1>Channel 4</h1>" in parsed.source and "have no word in common" in parsed.text


def test_features_that_have_a_page_are_links(folder):
    """Also those that are about to get one; the raw channel beside it is shown when it was made, and named when not."""
    assert not [a for a in write(folder).all("a") if a["href"].startswith("..")]
    assert "python featviz.py --channel 5" in write(folder).text
    other = feature(folder.with_name("feature_00009"))
    write(other)
    raw = feature(folder.with_name("channel_0005"), nearest_channel=None)
    parsed = write(folder, {folder.name, raw.name})
    write(raw)
    check(parsed, folder)
    links = {a["href"] for a in parsed.all("a") if a["href"].startswith("..")}
    assert links == {"../feature_00009/index.html", "../channel_0005/index.html"}
    assert "What excites channel 5" in parsed.source and "python featviz.py --channel 5" not in parsed.text


def test_a_trace_of_the_same_recipe_is_a_link(folder):
    """One that other settings left there is none; nor is one whose files are broken or gone."""
    recipe = json.loads((folder / "t0300/seed_2.json").read_text())["recipe"]
    trace, link = folder / "t0300/seed_2_trace", "t0300/seed_2_trace/trace.html"
    trace.mkdir()
    (trace / "trace.html").write_text("")
    linked = lambda: link in [a["href"] for a in write(folder).all("a")]
    assert not linked()
    for changes, same in (({}, True), ({"config": recipe["config"] | {"learning_rate": 0.5}}, False),
                          ({"torch": "1"}, False)):
        meta = {"featviz": json.dumps({"step": 1, **recipe, **changes})}
        save_file({"before": np.zeros(3, np.float32)}, trace / "step_001.safetensors", metadata=meta)
        assert linked() == same
    (trace / "step_001.safetensors").write_bytes(b"{")
    assert not linked()


def test_the_style_keeps_paper_and_keyboard_in_mind(folder):
    """Without the script, and on paper, the viewers lie open."""
    source = write(folder).source
    opened = source.partition("@media print, (scripting: none) {")[2]
    assert re.match(r"\s*dialog \{ display: block; position: static;", opened) and ".all { display: block; }" in opened
    assert "From left to right: after 0, 1, 2 of 2 steps." in source
    assert all(text in source for text in ("prefers-color-scheme: dark", ":focus-visible", 'name="viewport"',
                                           'lang="en"'))


# --- the command that makes it again ------------------------------------------------------------------------

COMMANDS = {                # more of them: slow/test_page.py
    "plain": [],
    "every kind of setting": ["--num-steps", "3", "--no-noise", "--prior", "noise", "--learning-rate", "0.0325",
                              "--steer-scale", "7", "--jitter-max",
                              "4", "--epsilon", "1e-07", "--frames", "2"],
    "a channel": ["--channel", "4", "--num-steps", "3"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_on_the_page_makes_the_same_recipes(name, weights, tmp_path):
    there_and_back(COMMANDS[name], weights, tmp_path)


def there_and_back(flags, weights, tmp_path):
    """From flags to records to the page to the command to flags: same jobs, same settings, same pictures kept."""
    short = ["--batch-size", "2", "--device", "cpu", "--timestep", "0", "300", "--seed", "1", "5"]
    if "none" in flags:                                # which has a number of steps of its own
        short += ["--num-steps", "2"]
    assert featviz.main(["--weights", str(weights), "--out", str(tmp_path), *short, *flags]) == 0
    path, = tmp_path.glob("tiny/*/index.html")
    parsed = Page(path)
    check(parsed, path.parent)
    shown = html.unescape(re.search(r"<pre><code>(.*?)</code></pre>", parsed.source, re.DOTALL)[1])
    made = {json.dumps(r.recipe, sort_keys=True): r for r in read_results(path.parent)}
    records = list(made.values())
    older = {k: v for k, v in records[0].recipe.items() if k != "differs"}
    for command in (shown, again.command(older, [0, 300], [1, 5], len(records[0].steps))):
        words = shlex.split(command)
        assert words[:3] == ["python", "featviz.py", "--weights"] and len(made) == 4
        words[3] = str(weights)
        args = featviz.parse([*words[2:], "--out", str(tmp_path)])
        model, jobs, (config,), _ = featviz.plan(args)
        usual = configure(model.settings, "raw" if args.channel else "sae")
        assert {json.dumps(files.recipe(model, job, config, usual), sort_keys=True) for job in jobs} == made.keys()
        assert kept_steps(config.num_steps, args.frames) == records[0].steps
    assert len(again.command(records[0].recipe, [0], [1])) < len(again.command(older, [0], [1]))


def test_usual_settings_are_not_spelled_out(weights, tmp_path):
    model = load(weights, "cpu")
    config = configure(model.settings, "sae", moment_weight=0.25)
    recipe = files.recipe(model, Job(feature=3, timestep=300, seed=5), config, configure(model.settings, "sae"))
    made = again.command(recipe, [300], [5], weights=weights)
    assert made == (f"python featviz.py --weights {weights} --feature 3 --timestep 300 --seed 5 --device cpu "
                    "--moment-weight 0.25")
    del recipe["differs"]                                       # as in a record of an older version
    spelled = again.command(recipe, [300], [5])
    assert all(f"-{field.name.replace('_', '-')}" in spelled for field in dataclasses.fields(config))
    assert "--dtype float32" in spelled


def test_results_of_other_settings_get_commands_of_their_own(tmp_path):
    folder = feature(tmp_path / "toy" / "feature_00012", times=(0, 300, 700))
    path = folder / "t0700/seed_2.json"
    record = json.loads(path.read_text())
    record["recipe"]["config"]["learning_rate"] = record["recipe"]["differs"]["learning_rate"] = 0.5
    path.write_text(json.dumps(record))
    commands = again.commands(read_results(folder))
    assert [(re.search("--timestep ([ 0-9]+) --seed ([ 0-9]+) ", c).groups(), "0.5" in c) for c in commands] == [
        (("0 300", "1 2"), False), (("700", "1"), False), (("700", "2"), True)]


def test_a_folder_without_a_result_has_no_page(tmp_path):
    activity(tmp_path / "toy/feature_00001")
    with pytest.raises(ValueError, match="holds no finished result"):
        pages.write_page(tmp_path / "toy/feature_00001")
