"""Branch and bound: parts of a region, cut where the bound is loosest, until the bound is good enough or the time is out."""
