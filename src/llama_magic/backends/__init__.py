"""What the machine offers: processors and memory as the container allows them."""
