"""The main job: read the lists, settle what is missing, hand pages to the database."""
