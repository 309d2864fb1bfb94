"""Learn: lessons on real weights, the survey's map, and classes.

    python -m evaluation learn                  writes each lesson's data into assets/learn
    python -m evaluation learn --static FOLDER  writes Learn as a folder that any web server can give out

A lesson is three things. `lessons/<name>.py` makes its data from the offline model and the stored results,
and says what must hold for its claim. `assets/learn/lessons/<name>/lesson.js` draws its figure. `en.json` and
`zh-Hant.json` beside it have its words; no word holds a measured number, since numbers come with the data.
"""
