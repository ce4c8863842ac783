"""Record, pictures and page: a run, for people.

In: records of cases, scans and label maps as arrays. Out: the run's record (JSON), a picture and a viewer for each
case, and the page of all. `explain` and `merge` answer from records alone.
"""
