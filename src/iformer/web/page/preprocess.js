// From a decoded image to a network's input: the evaluation transform of the Python package, pixel for pixel.
// As Pillow does, bytes are resampled with weights in fixed point and rounded after each pass: first along the rows,
// or first along the columns where the height shrinks by more than twice as many pixels as the width. Pillow before 13
// always begins with the rows; its pixels differ by 1 of 255 at most there.

const FRACTION_BITS = 22;
const LONGEST_ASPECT = 64;

const KERNELS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {
    support: 2,
    weight: (x) => {
      const a = -0.5;
      x = Math.abs(x);
      if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
      return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
    },
  },
};

// Returns where an image of width x height goes: the box of it that is read, the size to which that box is resized,
// and the part of the result that becomes the input.
export function placement(preprocessing, width, height) {
  const [inputHeight, inputWidth] = preprocessing.size;
  if (preprocessing.letterbox) return letterbox(preprocessing.size, width, height);
  const box = limitAspect(width, height, inputWidth, inputHeight);
  const boxWidth = box.right - box.left;
  const boxHeight = box.bottom - box.top;
  const scaledHeight = Math.floor(inputHeight / preprocessing.crop_pct);
  const scaledWidth = Math.floor(inputWidth / preprocessing.crop_pct);
  let resizedWidth, resizedHeight;
  if (scaledHeight === scaledWidth) {
    const longer = Math.trunc((scaledWidth * Math.max(boxWidth, boxHeight)) / Math.min(boxWidth, boxHeight));
    [resizedWidth, resizedHeight] = boxWidth <= boxHeight ? [scaledWidth, longer] : [longer, scaledWidth];
  } else {
    const ratio = Math.min(boxHeight / scaledHeight, boxWidth / scaledWidth);
    resizedWidth = roundHalfEven(boxWidth / ratio);
    resizedHeight = roundHalfEven(boxHeight / ratio);
  }
  return {
    box,
    resizedWidth,
    resizedHeight,
    left: roundHalfEven((resizedWidth - inputWidth) / 2),
    top: roundHalfEven((resizedHeight - inputHeight) / 2),
    inputWidth,
    inputHeight,
  };
}

// All of the image, at the top left.
function letterbox([inputHeight, inputWidth], width, height) {
  const factor = Math.min(inputHeight / height, inputWidth / width);
  return {
    box: { left: 0, top: 0, right: width, bottom: height },
    resizedWidth: Math.max(1, Math.min(inputWidth, roundHalfEven(width * factor))),
    resizedHeight: Math.max(1, Math.min(inputHeight, roundHalfEven(height * factor))),
    left: 0,
    top: 0,
    inputWidth,
    inputHeight,
  };
}

// Resizes RGBA pixels as `place` says and returns RGB pixels, H x W x 3. What lies outside of the image has the
// letterbox's colour, or is black.
export function resample(rgba, width, place, preprocessing) {
  const { box, resizedWidth, resizedHeight, left, top, inputWidth, inputHeight } = place;
  const fill = preprocessing.letterbox ?? [0, 0, 0];
  const kernel = KERNELS[preprocessing.letterbox ? "bilinear" : preprocessing.interpolation];
  const columns = weights(box.right - box.left, resizedWidth, left, inputWidth, kernel);
  const rows = weights(box.bottom - box.top, resizedHeight, top, inputHeight, kernel);
  const [firstRow, lastRow] = extent(rows);
  const [firstColumn, lastColumn] = extent(columns);
  const heightLost = box.bottom - box.top - resizedHeight;
  const columnsFirst = heightLost > 0 && heightLost > 2 * (box.right - box.left - resizedWidth);
  const span = columnsFirst ? lastColumn - firstColumn : inputWidth;
  const between = new Uint8ClampedArray((columnsFirst ? inputHeight : lastRow - firstRow) * span * 3);
  if (columnsFirst) {
    for (let y = 0; y < inputHeight; y++) {
      if (!rows[y]) continue;
      const line = ((rows[y].start + box.top) * width + box.left) * 4;
      for (let x = firstColumn; x < lastColumn; x++) {
        accumulate(rgba, line + x * 4, width * 4, rows[y].values, between, (y * span + x - firstColumn) * 3);
      }
    }
  } else {
    for (let y = firstRow; y < lastRow; y++) {
      const line = ((y + box.top) * width + box.left) * 4;
      for (let x = 0; x < inputWidth; x++) {
        if (!columns[x]) continue;
        accumulate(rgba, line + columns[x].start * 4, 4, columns[x].values, between, ((y - firstRow) * span + x) * 3);
      }
    }
  }
  const result = new Uint8ClampedArray(inputHeight * inputWidth * 3);
  for (let y = 0; y < inputHeight; y++) {
    for (let x = 0; x < inputWidth; x++) {
      const at = (y * inputWidth + x) * 3;
      if (!rows[y] || !columns[x]) {
        result.set(fill, at);
      } else if (columnsFirst) {
        const start = (y * span + columns[x].start - firstColumn) * 3;
        accumulate(between, start, 3, columns[x].values, result, at);
      } else {
        const start = ((rows[y].start - firstRow) * span + x) * 3;
        accumulate(between, start, span * 3, rows[y].values, result, at);
      }
    }
  }
  return new Uint8Array(result.buffer);
}

// The first source position that any entry uses, and the one after the last.
function extent(entries) {
  const used = entries.filter(Boolean);
  return [
    Math.min(...used.map((entry) => entry.start)),
    Math.max(...used.map((entry) => entry.start + entry.values.length)),
  ];
}

// Returns the input that an artifact takes: bytes or floats, in its layout, as its record says.
export function networkInput(artifact, rgb) {
  const { dtype, layout, normalized_by: normalizedBy } = artifact.input;
  const { size, mean, std } = artifact.preprocessing;
  const channels = mean.length;
  const pixels = channels === 1 ? gray(rgb) : rgb;
  if (dtype === "uint8" && layout === "NHWC") return pixels;
  const count = size[0] * size[1];
  const values = dtype === "uint8" ? new Uint8Array(count * channels) : new Float32Array(count * channels);
  const normalized = normalizedBy === "caller";
  for (let pixel = 0; pixel < count; pixel++) {
    for (let channel = 0; channel < channels; channel++) {
      const value = pixels[pixel * channels + channel];
      const at = layout === "NHWC" ? pixel * channels + channel : channel * count + pixel;
      values[at] = normalized ? (value / 255 - mean[channel]) / std[channel] : value;
    }
  }
  return values;
}

function accumulate(source, start, step, values, target, at) {
  const half = 1 << (FRACTION_BITS - 1);
  let red = half;
  let green = half;
  let blue = half;
  for (let index = 0, from = start; index < values.length; index++, from += step) {
    const weight = values[index];
    red += source[from] * weight;
    green += source[from + 1] * weight;
    blue += source[from + 2] * weight;
  }
  // Uint8ClampedArray clips to 0..255
  target[at] = red >> FRACTION_BITS;
  target[at + 1] = green >> FRACTION_BITS;
  target[at + 2] = blue >> FRACTION_BITS;
}

// The weights of each output position from `first` on, in fixed point; null outside of the resized image.
function weights(length, resized, first, count, kernel) {
  const scale = length / resized;
  const stretch = Math.max(1, scale);
  const support = kernel.support * stretch;
  const found = [];
  for (let position = first; position < first + count; position++) {
    if (position < 0 || position >= resized) {
      found.push(null);
      continue;
    }
    if (resized === length) {
      found.push({ start: position, values: Int32Array.of(1 << FRACTION_BITS) });
      continue;
    }
    const centre = (position + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(length, Math.trunc(centre + support + 0.5));
    const values = new Float64Array(end - start);
    let sum = 0;
    for (let index = 0; index < values.length; index++) {
      values[index] = kernel.weight((index + start - centre + 0.5) * (1 / stretch));
      sum += values[index];
    }
    found.push({ start, values: Int32Array.from(values, (value) => fixedPoint(sum ? value / sum : value)) });
  }
  return found;
}

function fixedPoint(weight) {
  return Math.trunc((weight < 0 ? -0.5 : 0.5) + weight * (1 << FRACTION_BITS));
}

function limitAspect(width, height, inputWidth, inputHeight) {
  const longest = Math.max(
    LONGEST_ASPECT,
    (4 * Math.max(inputHeight, inputWidth)) / Math.min(inputHeight, inputWidth),
  );
  const limit = Math.trunc(Math.min(width, height) * longest);
  if (Math.max(width, height) <= limit) return { left: 0, top: 0, right: width, bottom: height };
  const left = Math.max(0, Math.floor((width - limit) / 2));
  const top = Math.max(0, Math.floor((height - limit) / 2));
  return { left, top, right: width - left, bottom: height - top };
}

function gray(rgb) {
  // Pillow's weights of ITU-R 601
  const values = new Uint8Array(rgb.length / 3);
  for (let pixel = 0; pixel < values.length; pixel++) {
    const at = pixel * 3;
    values[pixel] = (rgb[at] * 19595 + rgb[at + 1] * 38470 + rgb[at + 2] * 7471 + 0x8000) >> 16;
  }
  return values;
}

export function roundHalfEven(value) {
  const rounded = Math.round(value);
  return Math.abs(value % 1) === 0.5 && rounded % 2 !== 0 ? rounded - 1 : rounded;
}
