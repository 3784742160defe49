"""A whole pytest run: what its tests share and have come to, what is judged of it, and what it says at its end."""
