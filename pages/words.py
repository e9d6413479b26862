"""What the pages say of results in words: verdicts, how to read a page, the sentences at its top."""
import json

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
    "verdict": "one word for how the ascent went, the first of these that holds:"}


def terms(r):
    """{term: what it means} for results like this one."""
    hook = r.recipe.get("hook_point", "not recorded")
    return {term: text.format(kind=r.kind, hook=hook) for term, text in TERMS.items()}


def seems(activity):
    """What the dataset says of the feature, in a sentence."""
    if not activity:
        return "Which images excite it is not known: there is no capture of this model."
    if activity["concept"]:
        concept = " ".join(activity["concept"])
        return f"It seems to show {concept}: the prompts of the images that excite it most share this."
    return "The prompts of the images that excite it most have no word in common."


def raised(r, activity):
    """What the ascent reached, in a sentence."""
    start, end, times = r.scores["activation_start"], r.scores["activation"], gain(r, activity)
    if end is None:
        return f"The ascent gave no number: {r.verdict}."
    strongest = "" if times is None else f", {short(times)} times that of the strongest of {activity['images']} images"
    return (f"At time step {r.t} the ascent took its activation from {short(start)} to {short(end)}{strongest}, "
            f"rank {short(r.scores['rank'])}: {r.verdict}.")


def reached(r, activity):
    """The same in few words."""
    start, end, rank = (short(r.scores[name]) for name in ("activation_start", "activation", "rank"))
    times = gain(r, activity)
    strongest = "" if times is None else f", {short(times)} times the strongest image"
    return f"{start} to {end}{strongest}, rank {rank}"


def told(r):
    """A result's name, for alt texts and headings."""
    return f"{r.kind} {r.target}, time step {r.t}, seed {r.seed}"


def which(found):
    """Several results by time step and seed."""
    times = {r.t: [str(other.seed) for other in found if other.t == r.t] for r in found}
    return "; ".join(f"time step {t}, seed {', '.join(seeds)}" for t, seeds in times.items())


def differences(found):
    """What results that were not all made alike differ in, beside time step and seed: ([name], [(results, [their value
    of each name])]); both empty where they are alike."""
    recipes = [{(part, name): value for part, inside in r.recipe.items() if part != "job"
                for name, value in (inside if isinstance(inside, dict) else {part: inside}).items()} for r in found]
    keys = [key for key in dict.fromkeys(key for recipe in recipes for key in recipe)
            if any(recipe.get(key) != recipes[0].get(key) for recipe in recipes)]
    groups = {}
    for r, recipe in zip(found, recipes):
        values = [recipe.get(key, "not recorded") for key in keys]
        groups.setdefault(json.dumps(values), (values, []))[1].append(r)
    return [name for _, name in keys], [(made, values) for values, made in groups.values()] if keys else []
