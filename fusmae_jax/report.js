for (const slider of document.querySelectorAll(".compare input"))
  slider.addEventListener("input", () =>
    slider.parentElement.style.setProperty("--x", slider.value + "%"));

const thumb = document.getElementById("thumb");
if (thumb) {
  const [picture, name] = thumb.children;
  const side = Number(thumb.dataset.side), columns = Number(thumb.dataset.columns);
  picture.style.width = picture.style.height = side + "px";
  let last;
  const hide = () => { thumb.style.display = "none"; last?.classList.remove("on"); };
  const show = (point) => {
    hide();
    const i = Number(point.dataset.i), box = point.getBoundingClientRect();
    const x = i % columns, y = Math.floor(i / columns);
    picture.style.backgroundPosition = `${-x * side}px ${-y * side}px`;
    name.textContent = point.getAttribute("aria-label");
    thumb.style.display = "block";
    const [w, h] = [thumb.offsetWidth, thumb.offsetHeight];
    thumb.style.left = Math.max(4, Math.min(box.right + 8, innerWidth - w - 4)) + "px";
    thumb.style.top = Math.max(4, Math.min(box.bottom + 8, innerHeight - h - 4)) + "px";
    (last = point).classList.add("on");
  };
  for (const point of document.querySelectorAll("circle[data-i]")) {
    for (const what of ["pointerenter", "click"])
      point.addEventListener(what, () => show(point));
    point.addEventListener("pointerleave", hide);
  }
}
