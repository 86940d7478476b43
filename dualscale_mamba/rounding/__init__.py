"""How a weight becomes codes on its grid: nearest, with a searched scale, or so that the layer's output errs least."""
