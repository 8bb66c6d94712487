"""What compression puts on a layer: masks, integer grids and codebooks; and finding the layers."""
