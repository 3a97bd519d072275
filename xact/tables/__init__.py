"""Tables of labels: CSV and parquet files, the types of columns, expressions over them."""
