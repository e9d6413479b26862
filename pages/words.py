"""What the pages say of results in words: verdicts, how to read a page, the sentences at its top."""
import json

from pages.again import flags
from pages.read import gain, short

# the rule: the first that holds is the verdict (ascent.judge_result); a word that is not here is shown as it is
VERDICTS = {
    "non-finite": "numbers ran out of range; the picture is the last sound one",
    "silent": "at the end it does not answer at all",
    "weak": "it ended no higher than it started",
    "fragile": "more than half of the activation is lost when the picture is decoded and encoded again, so it is not "
               "what the eye sees",
    "raised": "it rose, but it is not among the ten most active at the end, or has less than half of the activation of "
              "the strongest dataset image at this time step, where that is known",
    "excited": "none of these: the picture excites it more than the start did, still does when decoded and encoded "
               "again, makes it one of the ten most active, and reaches half of what the strongest dataset image does"}
TERMS = {           # of every caption, in the words of a first-year student
    "hook point": "the place inside the network where the {kind} is looked for; here {hook}",
    "time step": "how much noise lies over the picture when the network sees it: 0 is none, 999 is little else",
    "activation": "how strongly the {kind} answers to the picture: the mean over all places at the hook point and "
                  "over four fresh noises",
    "rank": "its place among all {kind}s, ordered by activation: at rank 1 none answers more to this picture",
    "verdict": "one word for how it went, the first of these that holds:"}
FINISHED = {
    "finished": "what the model makes of what the ascent found: it redraws the picture from noise while the {kind} "
                "keeps pulling (finish.py)",
    "ascent": "what gradient ascent found, as it is (ascent.py)"}
MEANS = ("The ascent finds what excites it; the finish shows what the model makes of that, which is easier to "
         "recognise and proves less: the model may put in what was not asked for, so compare the two activations.")
READ = {            # what measure.py wrote, as far as read.PROVEN lets it through
    "name": "the words lie nearest to its pictures, as a suggestion, not the truth",
    "agreement": "agreement is how surely they look more like the images that excite it than like other features' (0.5 "
                 "is chance; at rank 1 no other feature's are nearer)",
    "seeds": "a seed counts where its picture is more like the other seeds' than like the images of 99 of 100 features"}
SAID = 2            # words of a name that are said
RULE = ("A rule chose this picture, no person: of all seeds the one that excites the {kind} most after decoding and "
        "encoding; of several time steps the one with the most noise at which that is as much as any dataset image "
        "reaches, else the one where it comes closest; usual settings before others.")


def terms(r):
    """{term: what it means} for results like this one."""
    hook = r.recipe.get("hook_point", "not recorded")
    named = (FINISHED if r.finished else {}) | TERMS
    return {term: text.format(kind=r.kind, hook=hook) for term, text in named.items()}


def seems(activity):
    """What the dataset says of the feature, in a sentence."""
    if not activity:
        return "Which images excite it is not known: there is no capture of this model."
    if activity["concept"]:
        concept = " ".join(activity["concept"])
        return f"It seems to show {concept}: the prompts of the images that excite it most share this."
    return "The prompts of the images that excite it most have no word in common."


def climbed(r, activity):
    """What the ascent reached and what the finish left of it, in two sentences."""
    start, end, times = r.scores["activation_start"], r.scores["activation"], gain(r, activity)
    if end is None:
        return f"The ascent gave no number: {r.verdict}."
    strongest = "" if times is None else f", {short(times)} times that of the strongest of {activity['images']} images"
    last = r.finished and (f" The finished picture has {short(r.finished.scores['activation'])}, rank "
                           f"{short(r.finished.scores['rank'])}: {r.finished.verdict}.")
    return (f"At time step {r.t} the ascent took its activation from {short(start)} to {short(end)}{strongest}, "
            f"rank {short(r.scores['rank'])}: {r.verdict}.{last or ''}")


def reached(r, activity):
    """What a picture has, in few words."""
    start, end, rank = (short(r.scores[name]) for name in ("activation_start", "activation", "rank"))
    times = gain(r, activity)
    strongest = "" if times is None else f", {short(times)} times the strongest image"
    return f"{start} to {end}{strongest}, rank {rank}"


def told(r):
    """A result's name, for alt texts and headings."""
    return f"{r.kind} {r.target}, time step {r.t}, seed {r.seed}" + (f", {settings(r)}" if settings(r) else "")


def settings(r):
    """What a result's settings have other than the usual ones, as it is typed; "" where nothing."""
    return " ".join(flags(r.recipe)) if r.recipe.get("differs") else ""


def reads(group):
    """What eyes say of a group of pictures (read.read_legibility), in a line; "" where nothing is known."""
    says = []
    if name := group.get("name"):
        says.append(f"reads as: {', '.join(likely(name['words']))}")
    if a := group.get("agreement"):
        says.append(f"agreement {a['auc']:.2f}, rank {a['rank']} of {a['of']}")
    if s := group.get("seeds"):
        says.append(f"one thing in {s['alike']} of {s['of']} seeds")
    return "; ".join(says)


def likely(words):
    """Of the best words those that are said."""
    return [word for word, _ in words[:SAID]]


def how_read(group):
    """What the parts of that line mean, in a sentence."""
    known = [text for name, text in READ.items() if name in group]
    return f"So says a network that compares pictures and words, which is weak evidence: {'; '.join(known)}."


def which(found):
    """Several results by time step and seed."""
    times = {r.t: [str(other.seed) for other in found if other.t == r.t] for r in found}
    return "; ".join(f"time step {t}, seed {', '.join(seeds)}" for t, seeds in times.items())


def differences(found):
    """What results that were not all made alike differ in, beside time step and seed: ([name], [(results, [their value
    of each name])]); both empty where they are alike. Settings that differ stand above their results, so they count
    only where a record does not say which these are."""
    told_apart = {"job", "differs"} | ({"config"} if all("differs" in r.recipe for r in found) else set())
    recipes = [{(part, name): value for part, inside in r.recipe.items() if part not in told_apart
                for name, value in (inside if isinstance(inside, dict) else {part: inside}).items()} for r in found]
    keys = [key for key in dict.fromkeys(key for recipe in recipes for key in recipe)
            if any(recipe.get(key) != recipes[0].get(key) for recipe in recipes)]
    groups = {}
    for r, recipe in zip(found, recipes):
        values = [recipe.get(key, "not recorded") for key in keys]
        groups.setdefault(json.dumps(values), (values, []))[1].append(r)
    return [name for _, name in keys], [(made, values) for values, made in groups.values()] if keys else []
