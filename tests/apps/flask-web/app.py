from flask import Flask, render_template

app = Flask(__name__)


@app.get("/")
def index() -> str:
    return render_template("index.html", name="flask-web")


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}
