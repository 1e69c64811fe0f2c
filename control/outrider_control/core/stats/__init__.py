"""The statistics of experiments: pure, over units, from moments that can be added up."""
