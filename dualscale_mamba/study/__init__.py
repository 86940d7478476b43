"""A study: jobs known by their content, a folder that two lines may share, and what became of each job."""
