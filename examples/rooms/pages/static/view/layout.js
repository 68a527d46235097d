const WIDEST = 16 / 9;
const NARROWEST = 4 / 3;
const SMALLEST = 120;

/**
 * The number of columns and the size of tiles with which `count` pictures fill an area best. If they would become too
 * small, the area scrolls.
 */
export function arrange(count, width, height, gap) {
  let best = { columns: 1, width: 0, height: 0 };
  for (let columns = 1; columns <= count; columns += 1) {
    const rows = Math.ceil(count / columns);
    const tile = fit((width - gap * (columns - 1)) / columns, (height - gap * (rows - 1)) / rows);
    if (tile.width * tile.height > best.width * best.height) best = { columns, ...tile };
  }
  if (best.width >= Math.min(SMALLEST, width)) return best;
  const columns = Math.max(1, Math.floor((width + gap) / (SMALLEST + gap)));
  const side = (width - gap * (columns - 1)) / columns;
  return { columns, width: side, height: side / NARROWEST };
}

function fit(width, height) {
  return { width: Math.min(width, height * WIDEST), height: Math.min(height, width / NARROWEST) };
}
