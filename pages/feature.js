document.addEventListener("click", event => {
  const opener = event.target.closest("[data-view]");
  if (opener) document.getElementById(opener.dataset.view).showModal();
  else if (event.target.nodeName === "DIALOG") event.target.close();
});
for (const slider of document.querySelectorAll("input[type=range]")) {
  const view = slider.closest("dialog"), says = JSON.parse(slider.dataset.says);
  const show = () => {
    const k = Number(slider.value);
    const strip = view.querySelector(".strip");
    strip.style.setProperty("--k", k);
    strip.alt = "The picture " + says[k];
    view.querySelector("output").textContent = says[k];
    slider.setAttribute("aria-valuetext", says[k]);
    view.querySelectorAll(".course .peak").forEach((line, i) => line.classList.toggle("now", i === k));
  };
  slider.addEventListener("input", show);
  show();
}
