document.addEventListener("keydown", event => {         // arrow keys and n, p turn the page
  const turn = {ArrowRight: 1, n: 1, ArrowLeft: -1, p: -1}[event.key];
  if (!turn || event.altKey || event.ctrlKey || event.metaKey) return;
  const all = [...document.querySelectorAll("header, section")];
  const here = all.findLastIndex(s => s.getBoundingClientRect().top < innerHeight / 3);
  const next = all[Math.min(Math.max(here + turn, 0), all.length - 1)];
  next.scrollIntoView(); next.focus({preventScroll: true});
});
