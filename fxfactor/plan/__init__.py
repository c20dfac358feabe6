"""What to do at each site: the ladder of levels, the plan and its layers, the budget, the explanation."""
