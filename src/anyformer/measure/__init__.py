"""What a model costs: parameters, multiply-adds, latency, and ratios with an interval."""
