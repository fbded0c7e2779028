"""Files that runs and servers leave: opened so that nothing leads astray, and with the rights that they should have."""
