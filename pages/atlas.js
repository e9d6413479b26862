const form = document.getElementById("filter"), wall = document.getElementById("wall");
const count = document.getElementById("count");
const EVIDENCE = ["strong", "fair", "weak", "missing"];
const rising = (a, b) => a === b ? 0 : a === null || a === "" ? 1 : b === null || b === "" ? -1 : a < b ? -1 : 1;
const falling = (a, b) => a === null || b === null ? rising(a, b) : b - a;
const strength = x => x.face.strength ?? x.face.activation;
const orders = {                                    // the unknown last; equals by number
  evidence: (a, b) => EVIDENCE.indexOf(a.evidence) - EVIDENCE.indexOf(b.evidence) || falling(strength(a), strength(b)),
  words: (a, b) => rising(a.words, b.words), strength: (a, b) => falling(strength(a), strength(b)),
  number: () => 0, peak: (a, b) => rising(a.peak, b.peak)};
const items = JSON.parse(document.getElementById("data").textContent).map(x => ({...x, name: `${x.kind} ${x.number}`,
  search: `${x.kind} ${x.number} ${x.hook} ${x.words}`.toLowerCase(), tile: null, face: x.faces[0]}));
let shown = items;

function element(tag, text, className = "") {
  return Object.assign(document.createElement(tag), {textContent: text, className});
}

function build(x) {                                 // a feature's tile; `turn` fills in what a face says
  x.tile = Object.assign(element("a", "", "tile"), {href: x.link});
  const img = Object.assign(element("img", ""), {loading: "lazy", decoding: "async", width: 128, height: 128});
  img.onload = () => img.classList.toggle("small", img.naturalWidth < 160);
  x.tile.append(img, element("b", x.words || "no word known"), element("span", x.name),
    element("small", x.hook && `at ${x.hook}`), element("i", ""));
}

function turn(ascent) {                             // the finished picture, or the one that the ascent left
  for (const x of items) {
    x.face = x.faces[+ascent];
    const [img, , , , verdict] = x.tile.children;
    Object.assign(img, {src: x.face.picture, alt: `picture that excites ${x.name}`});
    verdict.textContent = x.face.verdict === "excited" ? "" : x.face.verdict;
    x.tile.title = `${x.name}, time step ${x.t}: ${x.face.verdict}, evidence ${x.evidence}, activation `
      + (x.face.activation ?? "not finite") + (x.face.strength === null ? "" :
        `, ${x.face.strength} times the strongest dataset image`);
  }
}

function apply() {                                  // what the form says -> the wall
  const f = Object.fromEntries(new FormData(form));
  turn("ascent" in f);
  const terms = f.search.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = x => (!f.verdict || x.face.verdict === f.verdict)
    && terms.every(term => /^\d+$/.test(term) ? `${x.number}` === `${+term}` : x.search.includes(term));
  shown = items.filter(fits).sort((a, b) => orders[f.sort](a, b) || rising(a.number, b.number));
  wall.replaceChildren(...shown.map(x => x.tile));
  count.textContent = `${shown.length.toLocaleString("en")} of ${items.length.toLocaleString("en")}`;
}

function remember() {                               // in the address: for the way back from a page, and for links
  history.replaceState(null, "", "#" + new URLSearchParams([...new FormData(form)].filter(([, value]) => value)));
}

items.forEach(build);
for (const verdict of new Set(items.flatMap(x => x.faces.map(face => face.verdict))))
  form.verdict.append(element("option", verdict));
form.hidden = false;
for (const [name, value] of new URLSearchParams(location.hash.slice(1)))
  if (form.elements[name]?.type === "checkbox") form.elements[name].checked = true;
  else if (form.elements[name]) form.elements[name].value = value;
form.sort.value ||= "evidence";
form.addEventListener("submit", event => event.preventDefault());
form.addEventListener("input", apply);
form.addEventListener("change", remember);
form.addEventListener("reset", () => setTimeout(() => { apply(); remember(); }));
wall.addEventListener("keydown", event => {         // arrow keys walk from tile to tile
  const columns = getComputedStyle(wall).gridTemplateColumns.split(" ").length;
  const steps = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -Infinity, End: Infinity};
  const step = steps[event.key], at = shown.findIndex(x => x.tile === event.target);
  if (!step || at < 0 || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  shown[Math.min(shown.length - 1, Math.max(0, at + step))].tile.focus();
});
apply();
