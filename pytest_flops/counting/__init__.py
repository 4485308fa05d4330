"""From a model to a report: one run on shapes, recorded step by step."""
