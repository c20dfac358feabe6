"""What a network costs and where it suffers: costs, summary, layer-wise distributions."""
