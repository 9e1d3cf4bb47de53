"""Where methods look: where kept tokens lie, what scores and words weigh, what choices follow; chance stands beside."""
