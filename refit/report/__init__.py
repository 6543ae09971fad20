"""What every page that Refit writes is made of: HTML by functions, one style sheet, charts, pictures inside the page.

`pictures` needs OpenCV; all else is the standard library, so that Airflow's API server can use it.
"""
