"""EventStackMFF: fusion of a focal stack and its event stack (Wu and Xie, 2026)."""
