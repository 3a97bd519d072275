(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const tip = document.getElementById("tip");
  const pictures = new Map([...document.querySelectorAll("[data-stimulus] img")].map(
    (image) => [image.parentElement.dataset.stimulus, image.src]));
  for (const box of document.querySelectorAll("[data-matrix]")) {
    const matrix = data[box.dataset.matrix];
    if (!matrix.levels) continue;
    const levels = atob(matrix.levels);
    const image = box.querySelector("img");
    image.addEventListener("pointermove", (event) => {
      const at = image.getBoundingClientRect();
      const place = (x, side) => Math.min(matrix.n - 1, Math.max(0, Math.floor(x / side * matrix.n)));
      const row = place(event.clientY - at.top, at.height), column = place(event.clientX - at.left, at.width);
      const level = levels.charCodeAt(row * matrix.n + column);
      const value = level === 255 ? "NaN" : (matrix.low + level / 254 * (matrix.high - matrix.low)).toFixed(3);
      tip.replaceChildren();
      for (const k of [row, column]) {
        const line = document.createElement("div");
        if (pictures.has(matrix.names[k])) {
          const picture = document.createElement("img");
          picture.src = pictures.get(matrix.names[k]);
          line.append(picture);
        }
        line.append(matrix.names[k]);
        tip.append(line);
      }
      const number = document.createElement("b");
      number.textContent = value;
      tip.append(number);
      tip.hidden = false;
      const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
      const y = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8);
      tip.style.left = `${Math.max(8, x)}px`;
      tip.style.top = `${Math.max(8, y)}px`;
    });
    image.addEventListener("pointerleave", () => { tip.hidden = true; });
  }
})();
