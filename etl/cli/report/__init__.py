"""The body of `report`: one page that says whether the data are fine."""
