"""Search a folder of videos with words. Run it cell by cell, or whole:

python examples/search_your_videos.py ~/Videos runs/demo/model
"""

# %% A folder of videos and a model. Any source that `harvest convert` takes will do, such as
# "openai/clip-vit-base-patch16", which looks at frames one by one.
import sys
from pathlib import Path

import harvest
from harvest.search.library.segmentation import Segmentation
from harvest.search.results import Where

folder, model = Path(sys.argv[1]), sys.argv[2]
library = Path(sys.argv[3]) if len(sys.argv) > 3 else Path("runs/library")

# %% Index it. The same call again takes in what is new, changed, moved or gone, and goes on where it was stopped.
index = harvest.Index.build(folder, out=library, model=model, segmentation=Segmentation(window_s=4.0))
print(index.report)
for broken in index.broken():
    print("not indexed:", broken.path, broken.reason)

# %% Ask. An answer says whether there is anything like it at all.
answer = index.search("a red circle moves to the left", k=5)
print("found" if answer.is_there else "nothing like this here; the nearest:")
for hit in answer.hits:
    chance = "unknown" if hit.chance is None else f"{hit.chance:.1%}"
    print(f"{hit.path}  {hit.start_s:.1f} to {hit.end_s:.1f} s  score {hit.score:.3f}  chance {chance}")

# %% More like the best of them; without something; only in some of the files.
if answer.hits:
    for hit in index.search(moment=answer.hits[0].moment.id, k=3).hits:
        print("like it:", hit.path, hit.start_s)
for hit in index.search("a circle", without="a red circle", where=Where(path="*.mp4"), k=3).hits:
    print("no red ones:", hit.path, hit.start_s)

# %% Scores along one video, and a picture of one moment.
if answer.hits:
    best = answer.hits[0]
    timeline = index.timeline("a red circle moves to the left", best.moment.video)
    for moment, score in zip(timeline.moments, timeline.scores, strict=True):
        print(f"{moment.start_s:6.1f} s {'#' * max(0, round(40 * score))}")
    (library / "best.jpg").write_bytes(index.thumbnail(best.moment.video, best.start_s))

index.close()
