// Shows the values under the pointer. The page is complete without it.
for (const figure of document.querySelectorAll("figure[data-readout]")) {
  const data = JSON.parse(figure.dataset.readout);
  const tip = figure.appendChild(document.createElement("div"));
  tip.className = "tip";
  tip.hidden = true;
  const hide = (cursor) => {
    tip.hidden = true;
    cursor.style.visibility = "hidden";
  };
  for (const svg of figure.querySelectorAll("svg.chart")) {
    const cursor = svg.querySelector(".cursor");
    const [left, right] = [Number(svg.dataset.left), Number(svg.dataset.right)];
    svg.addEventListener("pointerleave", () => hide(cursor));
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const units = svg.viewBox.baseVal.width / box.width;
      const part = ((event.clientX - box.left) * units - left) / (right - left);
      if (part < -0.02 || part > 1.02) return hide(cursor);
      let best = 0;
      data.x.forEach((x, i) => {
        if (Math.abs(x - part) < Math.abs(data.x[best] - part)) best = i;
      });
      const x = left + data.x[best] * (right - left);
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      cursor.style.visibility = "visible";
      tip.replaceChildren();
      tip.appendChild(document.createElement("strong")).textContent = data.at[best];
      for (const [set, name, values] of data.lines) {
        if (values[best] === undefined || values[best] === "") continue;
        const row = tip.appendChild(document.createElement("div"));
        const who = row.appendChild(document.createElement("span"));
        who.appendChild(document.createElement("i")).className = "s" + set;
        who.append(name);
        row.appendChild(document.createElement("span")).textContent = values[best];
      }
      tip.hidden = false;
      const outer = figure.getBoundingClientRect();
      const at = box.left - outer.left + x / units;
      const flip = at + 16 + tip.offsetWidth > outer.width;
      tip.style.left = Math.max(4, flip ? at - 16 - tip.offsetWidth : at + 16) + "px";
      tip.style.top = box.top - outer.top + 24 + "px";
    });
  }
}
