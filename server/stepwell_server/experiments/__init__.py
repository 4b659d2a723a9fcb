"""Optimizers and schedules looked at: lists and forms on the terminal, pictures, and what is claimed of them, measured.

Everything runs in process, on NumPy arrays in float64, through the settings and programs that the server uses.
`commands` holds what `stepwell` offers and imports nothing heavy; `pictures` needs Matplotlib, the extra `demo`.
"""
