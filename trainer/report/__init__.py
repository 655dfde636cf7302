"""What is read from the records of runs afterwards: curves, tables, confusion matrices."""
