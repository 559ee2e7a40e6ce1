"""The only place that opens a video or a picture: at given times, exactly the frames a player would show, and no others.

source      what can be asked for, and the error for what cannot be read
opening     a container, its video stream, its length and its clock
decoding    every frame in presentation order, which defines what is right
key_frames  the same frames by seeking, decoding little
frames      a decoded frame as a picture: upright, scaled, cropped
pictures    files of one picture, folders of many; JPEGs
reading     read_clip, read_frames, stream_frames, probe
second_decoder  the same by torchcodec, where asked for
writing     write_video, transcode
"""

from harvest.data.video.pictures import FOLDER_FPS, IMAGE_SUFFIXES, write_pictures
from harvest.data.video.reading import probe, read_clip, read_frames, stream_frames
from harvest.data.video.second_decoder import Decoder
from harvest.data.video.source import PackedVideo, VideoError, VideoInfo
from harvest.data.video.writing import transcode, write_video

__all__ = [
    "FOLDER_FPS",
    "IMAGE_SUFFIXES",
    "Decoder",
    "PackedVideo",
    "VideoError",
    "VideoInfo",
    "probe",
    "read_clip",
    "read_frames",
    "stream_frames",
    "transcode",
    "write_pictures",
    "write_video",
]
