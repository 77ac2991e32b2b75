from detr_jax.data.layout import Layout


def recognise(root):
    l = root / "ImageSets" / "Main"
    if l.is_dir():
        return Layout("voc", {f.stem: (root, f.stem) for f in l.glob("*.txt")}, f"{root} is read as VOC")
    s = {f.name: (root, f.name) for f in root.iterdir() if f.is_dir() and list(f.glob("*.xml"))}
    return Layout("voc", s, f"{root} is read as VOC") if s else None
