"""`posteria bench`: the paper's tables and figures, and benches of our own, from one declarative description.

A *setup* is a model at one size (a column of a table), a *method* is what estimates its posterior (a row), a *cell* is
one method on one setup with one seed. Cells are run resumably into a result store, and reports are made from the store.
"""
