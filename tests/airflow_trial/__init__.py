"""The body of docs/deploy/airflow/try.sh: linq_sync.py on a real Airflow."""
