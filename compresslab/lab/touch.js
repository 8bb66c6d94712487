// Points of the chart that a mouse, a finger or the keyboard reaches, and names for screen readers on the whole page.
const SVG = "http://www.w3.org/2000/svg";

function make(tag, attributes, parent) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  parent.append(element);
  return element;
}

function drawPoints(model, svg, hint) {
  const [width, height] = model.get("size");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const focused = svg.contains(document.activeElement) && document.activeElement.getAttribute("aria-label");
  svg.replaceChildren();
  model.get("points").forEach((point, index) => {
    const circle = make("circle", { cx: point.x, cy: point.y, r: 11, tabindex: 0, role: "button" }, svg);
    circle.setAttribute("aria-label", point.text);
    const show = () => {
      hint.textContent = point.text;
      hint.style.left = `${Math.min((100 * point.x) / width, 45)}%`;
      hint.style.top = `${(100 * (point.y + 16)) / height}%`;
      hint.hidden = false;
    };
    const press = () => {
      model.set("pressed", [index, Date.now()]);
      model.save_changes();
    };
    for (const name of ["mouseenter", "focus"]) circle.addEventListener(name, show);
    for (const name of ["mouseleave", "blur"]) circle.addEventListener(name, () => (hint.hidden = true));
    circle.addEventListener("click", press);
    circle.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        press();
      }
    });
    if (focused === point.text) circle.focus({ preventScroll: true }); // points that were added take no focus away
  });
}

// ipywidgets draws sliders, pictures and bars without names; theirs are what a person reads beside them.
function nameControls(root) {
  for (const row of root.querySelectorAll(".widget-inline-hbox")) {
    const name = row.querySelector(".widget-label")?.textContent.trim();
    const readout = row.querySelector(".widget-readout");
    const value = readout?.textContent.trim();
    for (const part of row.querySelectorAll(".noUi-handle, select, input")) {
      if (name) part.setAttribute("aria-label", name);
      if (value && part.matches(".noUi-handle")) part.setAttribute("aria-valuetext", value);
    }
    if (readout && name) {
      readout.setAttribute("role", "textbox");
      readout.setAttribute("aria-label", `${name}, typed`);
    }
  }
  for (const image of root.querySelectorAll("img.widget-image")) image.alt = image.title;
  for (const bar of root.querySelectorAll(".progress")) {
    bar.setAttribute("role", "progressbar");
    bar.setAttribute("aria-label", "training");
  }
  for (const status of root.querySelectorAll(".compresslab-status")) {
    status.setAttribute("role", "status");
    status.setAttribute("aria-live", "polite");
  }
}

function render({ model, el }) {
  const svg = make("svg", {}, el);
  const hint = document.createElement("div");
  hint.className = "compresslab-hint";
  hint.hidden = true;
  el.append(hint);
  const draw = () => drawPoints(model, svg, hint);
  model.on("change:points", draw);
  draw();

  let observer = null;
  let waiting = false;
  const begin = () => {
    const root = el.closest(".compresslab");
    if (!root) return; // not on the page, or not in a lab
    nameControls(root);
    observer = new MutationObserver(() => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        nameControls(root);
      });
    });
    observer.observe(root, { childList: true, subtree: true, characterData: true });
    const kernel = model.widget_manager?.kernel; // JupyterLab's
    const mourn = () => root.classList.add("compresslab-dead");
    kernel?.disposed?.connect(mourn);
    kernel?.statusChanged?.connect((_, status) => {
      if (["dead", "restarting", "autorestarting", "terminating"].includes(status)) mourn();
    });
  };
  setTimeout(begin, 200);
  return () => {
    model.off("change:points", draw);
    observer?.disconnect();
  };
}

export default { render };
