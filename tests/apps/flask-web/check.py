"""One line that says whether the app answers, for where no port can be opened."""

from app import app

response = app.test_client().get("/health")
print(f"flask-web: {response.status} {response.get_json()['status']}")
