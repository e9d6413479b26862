const form = document.getElementById("filter"), wall = document.getElementById("wall");
const count = document.getElementById("count");
const data = JSON.parse(document.getElementById("data").textContent), PRINTED = 240, MARGIN = 3;
const items = data.rows.map(row => {
  const [folder, time, seed, activation, strength, verdict, rank, peak, words, page, begun, seen] = row;
  const [, hook, kind, number] = folder.match(/^(?:(.+)_)?(feature|channel)_0*(\d+)$/);
  const label = `${kind} ${number}` + (hook ? ` at ${hook}` : ""), concept = words.join(" ");
  const thumbnail = `atlas/${folder}_${time}_seed_${seed}`, last = {activation, strength, verdict, rank};
  const [agreement, names] = seen ?? [null, []], name = names.map(word => `${word}?`).join(" ");
  const [a, s, v, r] = begun ?? [], picture = `${thumbnail}.jpg`;
  const ascent = begun && {activation: a, strength: s, verdict: v, rank: r, picture: `${thumbnail}_ascent.jpg`};
  return {label, number: +number, t: +time.slice(1, 5), peak, words, concept, agreement, name,
    search: `${label} ${concept} ${name}`.toLowerCase(), faces: [{...last, picture}, ascent ?? {...last, picture}],
    link: `${folder}/` + (page ? "index.html" : `${time}/seed_${seed}.png`)};
});
let shown = [], tiles = new Map(), columns = 1, pitch = 1, width = 0, last = "", turned = null;

// order: rising for number, concept and peak, falling for scores; the unknown last; equals by strength, number
const rising = (a, b) => a === b ? 0 : a === null || a === "" ? 1 : b === null || b === "" ? -1 : a < b ? -1 : 1;
const falling = (a, b) => a === null || b === null ? rising(a, b) : b - a;
const orders = {number: rising, concept: rising, peak: rising, strength: falling, activation: falling,
  agreement: falling};

function fits(x, f, terms) {
  return terms.every(term => /^\d+$/.test(term) ? x.number === +term : x.search.includes(term))
    && (!f.concept || x.words.includes(f.concept)) && (!f.verdict || x.verdict === f.verdict)
    && (f.least === "" || x[data.score] !== null && x[data.score] >= +f.least)
    && (!f.agreement || x.agreement !== null && x.agreement >= +f.agreement)
    && (f.from === "" || x.peak !== null && x.peak >= +f.from) && (f.to === "" || x.peak !== null && x.peak <= +f.to);
}

function apply() {                                  // what the form says -> `shown`, from the top
  const f = Object.fromEntries(new FormData(form)), by = f.sort;
  if (turned !== "ascent" in f) turn("ascent" in f);
  const terms = f.search.toLowerCase().split(/\s+/).filter(Boolean);
  const order = (a, b) => orders[by](a[by], b[by]) || falling(a[data.score], b[data.score]) || a.number - b.number;
  shown = items.filter(x => fits(x, f, terms)).sort(order);
  count.textContent = `${shown.length.toLocaleString("en")} of ${items.length.toLocaleString("en")}`;
  if (scrollY > form.offsetTop) scrollTo(0, form.offsetTop);
  layout();
}

function turn(ascent) {                             // the other picture of each feature, with its numbers
  const kept = form.verdict.value;
  turned = ascent;
  for (const x of items) Object.assign(x, x.faces[+ascent]);
  form.verdict.length = 1;
  choices("verdict", items.map(x => x.verdict));
  form.verdict.value = [...form.verdict.options].some(o => o.value === kept) ? kept : "";
}

function layout() {                                 // columns and the height of a row, as the browser lays them out
  draw(0, 0);
  draw(0, Math.min(1, shown.length));
  const style = getComputedStyle(wall), gap = parseFloat(style.rowGap);
  columns = style.gridTemplateColumns.split(" ").length;
  pitch = shown.length ? wall.firstElementChild.getBoundingClientRect().height + gap : 1;
  wall.style.height = Math.max(0, Math.ceil(shown.length / columns) * pitch - gap) + "px";
  width = innerWidth;
  last = "";
  view();
}

function view() {                                   // the rows in view and a few around them
  const row = Math.min(Math.floor(-wall.getBoundingClientRect().top / pitch), Math.floor((shown.length - 1) / columns));
  const from = Math.max(0, row - MARGIN) * columns;
  const to = Math.min(shown.length, (row + Math.ceil(innerHeight / pitch) + 1 + MARGIN) * columns);
  if (last === (last = `${from} ${to}`)) return;
  wall.style.paddingTop = from / columns * pitch + "px";
  draw(from, to);
}

function draw(from, to) {                           // tiles from..to - 1; those that stay keep element and focus
  for (const [i, tile] of tiles) if (i < from || i >= to) { tile.remove(); tiles.delete(i); }
  for (let i = to - 1, next = null; i >= from; i--) {
    if (!tiles.has(i)) { tiles.set(i, tile(i)); wall.insertBefore(tiles.get(i), next); }
    next = tiles.get(i);
  }
}

function element(tag, text, className = "") {
  return Object.assign(document.createElement(tag), {textContent: text, className});
}

function tile(i) {
  const x = shown[i], a = element("a", ""), img = element("img", ""), line = element("span", "");
  const good = x.verdict === "excited";
  Object.assign(img, {src: x.picture, alt: `what excites ${x.label}`, width: 160, height: 160, decoding: "async"});
  a.href = x.link;
  a.className = "tile";
  a.dataset.index = i;
  a.title = `${x.label} at t ${x.t}: ${x.verdict}, activation ${x.activation ?? "not finite"}`
    + (x.rank === null ? "" : `, rank ${x.rank}`)
    + (x.peak === null ? "" : `, peak at t ${x.peak}`)
    + (x.name && `; reads as ${x.name}`) + (x.agreement === null ? "" : `, agreement ${x.agreement.toFixed(2)}`);
  const score = x.strength === null ? x.activation ?? "" : `${x.strength.toFixed(x.strength < 1 ? 2 : 1)}×`;
  line.append(element("i", x.label.replace("feature ", "")), element("i", good ? score : x.verdict, good ? "" : "off"));
  a.append(img, element("b", x.concept || x.name || "–"), line);
  return a;
}

function go(i) {                                    // move the focus to tile i, scrolling it into view first
  const top = wall.getBoundingClientRect().top + scrollY + Math.floor(i / columns) * pitch;
  const free = form.offsetHeight + 8;
  if (top - scrollY < free || top + pitch > scrollY + innerHeight)
    scrollTo(0, top - scrollY < free ? top - free : top + pitch - innerHeight);
  view();
  tiles.get(i).focus({preventScroll: true});
}

async function paper() {                            // the browser's own prints what is in view, this PRINTED
  draw(0, Math.min(PRINTED, shown.length));
  await Promise.all([...wall.querySelectorAll("img")].map(img => img.decode().catch(() => null)));
  print();
  layout();
}

function choices(name, values) {                    // options with their number of features, the most frequent first
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  for (const [value, n] of [...counts].sort((a, b) => b[1] - a[1] || rising(a[0], b[0])))
    form[name].append(Object.assign(element("option", `${value} (${n.toLocaleString("en")})`), {value}));
  form[name].parentElement.hidden = !counts.size;
}

function remember() {                               // in the address: for the way back from a page, and for links
  history.replaceState(null, "", "#" + new URLSearchParams([...new FormData(form)].filter(([, value]) => value)));
}

choices("concept", items.flatMap(x => x.words));
turn(false);
form.hidden = document.getElementById("print").hidden = false;
for (const [name, value] of new URLSearchParams(location.hash.slice(1)))
  if (form.elements[name]?.type === "checkbox") form.elements[name].checked = true;
  else if (form.elements[name]) form.elements[name].value = value;
form.sort.value ||= "strength";
form.addEventListener("submit", event => event.preventDefault());
form.addEventListener("input", apply);
form.addEventListener("change", remember);
form.addEventListener("reset", () => setTimeout(() => { apply(); remember(); }));
document.getElementById("print").addEventListener("click", paper);
wall.addEventListener("keydown", event => {
  const steps = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -Infinity, End: Infinity};
  const step = steps[event.key];
  if (!step || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go(Math.min(shown.length - 1, Math.max(0, +event.target.dataset.index + step)));
});
addEventListener("scroll", view, {passive: true});
addEventListener("resize", () => innerWidth === width ? view() : layout());
apply();
