(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const tip = document.getElementById("tip");

  // The pixels of a palette PNG without filters are the levels of the matrix.
  async function readLevels(image) {
    const bytes = Uint8Array.from(atob(image.src.split(",")[1]), (letter) => letter.charCodeAt(0));
    const view = new DataView(bytes.buffer), parts = [];
    for (let at = 8; at < bytes.length; at += 12 + view.getUint32(at))
      if (view.getUint32(at + 4) === 0x49444154) parts.push(bytes.subarray(at + 8, at + 8 + view.getUint32(at)));
    const rows = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(rows).arrayBuffer());
  }

  function makePicture(number) {
    const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
    picture.setAttribute("viewBox", "0 0 1 1");
    use.setAttribute("href", `#p${number}`);
    picture.append(use);
    return picture;
  }

  function show(matrix, row, column, value) {
    tip.replaceChildren(...[row, column].map((k) => {
      const line = document.createElement("div");
      const name = document.createElement("bdi");
      name.textContent = matrix.names[k];
      if ((matrix.pictures[k] ?? null) !== null) line.append(makePicture(matrix.pictures[k]));
      line.append(name);
      return line;
    }));
    const number = document.createElement("b");
    number.textContent = value;
    tip.append(number);
    tip.hidden = false;
  }

  for (const image of document.querySelectorAll("img[data-matrix]")) {
    const matrix = data[image.dataset.matrix], levels = readLevels(image);
    async function point(event) {
      const at = image.getBoundingClientRect();
      const place = (x, side) => Math.min(matrix.n - 1, Math.max(0, Math.floor(x / side * matrix.n)));
      const row = place(event.clientY - at.top, at.height), column = place(event.clientX - at.left, at.width);
      const level = (await levels)[row * (matrix.n + 1) + 1 + column];
      const value = level === 255 ? "NaN" : (matrix.low + level / 254 * (matrix.high - matrix.low)).toFixed(3);
      show(matrix, row, column, value);
      const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
      const y = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8);
      tip.style.left = `${Math.max(8, x)}px`;
      tip.style.top = `${Math.max(8, y)}px`;
    }
    image.addEventListener("pointermove", point);
    image.addEventListener("pointerdown", point);
    image.addEventListener("pointerleave", () => { tip.hidden = true; });
  }

  const dialog = document.querySelector("dialog");
  for (const button of document.querySelectorAll(".small button"))
    button.addEventListener("click", () => {
      const [image, name] = dialog.children;
      image.src = button.firstElementChild.src;
      image.alt = button.firstElementChild.alt;
      name.textContent = button.dataset.name;
      dialog.showModal();
    });
  dialog?.addEventListener("click", () => dialog.close());
})();
