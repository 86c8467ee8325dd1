"""Ways to run Headrace: on one machine (`local`), and what a cluster needs."""
