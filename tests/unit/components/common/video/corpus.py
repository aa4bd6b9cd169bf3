"""Videos as they come, made by ffmpeg: one of each kind of codec, container, clock, shape and oddity."""

# ruff: noqa
# fmt: off
from __future__ import annotations

import struct
import subprocess
from pathlib import Path


def lavfi(size="160x120", rate=25, dur=4, extra=""):
    return ["-f","lavfi","-i",f"testsrc2=s={size}:r={rate}:d={dur}{extra},gblur=sigma=4,hue=s=0.6"]
SINE=["-f","lavfi","-i","sine=f=440:d=4"]
X264=["-c:v","libx264","-preset","veryfast","-pix_fmt","yuv420p"]
def kinds():
    k={}
    def add(name, file, *args, src=None): k[name]=(file,[*(src or lavfi()),*args])
    add("h264","v.mp4",*X264)
    add("h264-bf","v.mp4",*X264,"-bf","3","-g","30")
    add("h264-faststart","v.mp4",*X264,"-movflags","faststart")
    add("h264-frag","v.mp4",*X264,"-g","25","-movflags","frag_keyframe+empty_moov")
    add("h264-mkv","v.mkv",*X264); add("h264-mov","v.mov",*X264); add("h264-ts","v.ts",*X264); add("h264-flv","v.flv",*X264); add("h264-avi","v.avi",*X264,"-bf","2"); add("h264-m2ts","v.m2ts",*X264)
    add("h264-open","v.mp4",*X264,"-x264-params","open-gop=1:keyint=20:scenecut=0:bframes=3")
    add("h264-444","v.mp4","-c:v","libx264","-pix_fmt","yuv444p"); add("h264-422","v.mp4","-c:v","libx264","-pix_fmt","yuv422p"); add("h264-10","v.mp4","-c:v","libx264","-pix_fmt","yuv420p10le"); add("h264-gray","v.mp4","-c:v","libx264","-pix_fmt","gray"); add("h264-full","v.mp4",*X264[:-1],"yuvj420p")
    add("h264-rgb","v.mp4","-c:v","libx264rgb","-qp","0"); add("h264-lossless","v.mp4",*X264,"-qp","0"); add("h264-baseline","v.mp4",*X264,"-profile:v","baseline"); add("h264-intra","v.mp4",*X264,"-g","1"); add("h264-intra-refresh","v.mp4",*X264,"-x264-params","intra-refresh=1:keyint=20")
    add("h264-interlaced","v.mp4",*X264,"-flags","+ildct+ilme"); add("h264-709","v.mp4",*X264,"-colorspace","bt709","-color_primaries","bt709","-color_trc","bt709")
    add("hevc","v.mp4","-c:v","libx265","-x265-params","log-level=none","-tag:v","hvc1"); add("hevc-10","v.mp4","-c:v","libx265","-pix_fmt","yuv420p10le","-x265-params","log-level=none"); add("hevc-ts","v.ts","-c:v","libx265","-x265-params","log-level=none"); add("hevc-mkv","v.mkv","-c:v","libx265","-x265-params","log-level=none:keyint=20")
    add("vp9","v.webm","-c:v","libvpx-vp9","-deadline","realtime","-cpu-used","8"); add("vp8","v.webm","-c:v","libvpx","-deadline","realtime","-cpu-used","8"); add("vp9-mp4","v.mp4","-c:v","libvpx-vp9","-deadline","realtime","-cpu-used","8")
    add("vp9-alt","v.webm","-c:v","libvpx-vp9","-deadline","good","-cpu-used","5","-auto-alt-ref","1","-lag-in-frames","16")
    add("av1","v.mp4","-c:v","libsvtav1","-preset","12"); add("av1-mkv","v.mkv","-c:v","libsvtav1","-preset","12")
    add("mpeg2-ts","v.ts","-c:v","mpeg2video","-bf","2","-q:v","3"); add("mpeg2-ps","v.mpg","-c:v","mpeg2video","-bf","2","-q:v","3"); add("mpeg2-mp4","v.mp4","-c:v","mpeg2video","-bf","2"); add("mpeg1","v.mpg","-c:v","mpeg1video"); add("mpeg2-vob","v.vob","-c:v","mpeg2video","-bf","2","-f","vob")
    add("mpeg2-interlaced","v.ts","-c:v","mpeg2video","-flags","+ildct+ilme","-bf","2")
    add("mpeg4","v.mp4","-c:v","mpeg4","-q:v","3"); add("mpeg4-bf","v.mp4","-c:v","mpeg4","-bf","2","-q:v","3"); add("mpeg4-avi","v.avi","-c:v","mpeg4","-q:v","3"); add("mpeg4-avi-bf","v.avi","-c:v","mpeg4","-bf","2","-q:v","3"); add("xvid","v.avi","-c:v","libxvid","-bf","2","-q:v","3")
    add("mjpeg-avi","v.avi","-c:v","mjpeg","-q:v","3"); add("mjpeg-mov","v.mov","-c:v","mjpeg","-q:v","3"); add("mjpeg-mkv","v.mkv","-c:v","mjpeg")
    add("prores","v.mov","-c:v","prores_ks"); add("dnxhd","v.mov","-c:v","dnxhd","-profile:v","dnxhr_lb",src=lavfi("320x240")); add("ffv1","v.mkv","-c:v","ffv1"); add("huffyuv","v.avi","-c:v","huffyuv"); add("rawvideo","v.avi","-c:v","rawvideo","-pix_fmt","yuv420p",src=lavfi(dur=1)); add("qtrle","v.mov","-c:v","qtrle",src=lavfi(dur=1)); add("png-mov","v.mov","-c:v","png",src=lavfi(dur=1)); add("utvideo","v.avi","-c:v","utvideo")
    add("wmv2","v.asf","-c:v","wmv2"); add("wmv1","v.wmv","-c:v","wmv1"); add("msmpeg4","v.avi","-c:v","msmpeg4"); add("flv1","v.flv","-c:v","flv"); add("theora","v.ogv","-c:v","libtheora","-q:v","7"); add("h263","v.3gp","-c:v","h263","-s","176x144"); add("gif","v.gif"); add("dv","v.mov","-c:v","dvvideo","-pix_fmt","yuv420p",src=lavfi("720x576",25,1))
    add("raw-h264","v.h264",*X264,"-bf","2"); add("raw-hevc","v.hevc","-c:v","libx265","-x265-params","log-level=none"); add("raw-m4v","v.m4v","-c:v","mpeg4","-f","m4v"); add("raw-mpeg2","v.m2v","-c:v","mpeg2video","-bf","2")
    add("odd","v.mp4","-c:v","libx264","-pix_fmt","yuv444p",src=lavfi("161x91")); add("tiny","v.mp4","-c:v","libx264","-pix_fmt","yuv444p",src=lavfi("16x12")); add("wide","v.mp4",*X264,src=lavfi("640x64")); add("tall","v.mp4",*X264,src=lavfi("64x640"))
    add("fps120","v.mp4",*X264,src=lavfi(rate=120,dur=1)); add("fps2997","v.mp4",*X264,src=lavfi(rate="30000/1001")); add("fps23","v.mkv",*X264,src=lavfi(rate="24000/1001")); add("fps1-3h","v.mp4",*X264,"-g","50","-preset","ultrafast",src=lavfi("64x48","1",10800))
    add("vfr","v.mp4",*X264,"-vf","select='not(mod(n,7))+between(n,30,50)'","-fps_mode","vfr"); add("vfr-mkv","v.mkv",*X264,"-vf","select='not(mod(n,7))+between(n,30,50)'","-fps_mode","vfr"); add("vfr-hole","v.mkv",*X264,"-vf","select='lt(n,30)+gt(n,80)'","-fps_mode","vfr"); add("vfr-hole-mp4","v.mp4",*X264,"-vf","select='lt(n,30)+gt(n,80)'","-fps_mode","vfr")
    add("sound","v.mp4",*X264,"-c:a","aac",src=lavfi()+SINE); add("sound-mkv","v.mkv",*X264,"-c:a","libopus",src=lavfi()+SINE); add("sound-ts","v.ts",*X264,"-c:a","aac",src=lavfi()+SINE); add("sound-avi","v.avi","-c:v","mpeg4","-c:a","mp3",src=lavfi()+SINE); add("sound-webm","v.webm","-c:v","libvpx","-deadline","realtime","-c:a","libopus",src=lavfi()+SINE); add("sound-flv","v.flv",*X264,"-c:a","aac",src=lavfi()+SINE)
    late=["-itsoffset","3"]+lavfi(dur=3)+["-f","lavfi","-i","sine=f=440:d=6"]
    add("late-mp4","v.mp4",*X264,"-fps_mode","passthrough","-c:a","aac",src=late); add("late-mkv","v.mkv",*X264,"-c:a","libopus",src=late); add("late-ts","v.ts",*X264,"-c:a","aac",src=late)
    add("late-only","v.mp4",*X264,"-fps_mode","passthrough",src=["-itsoffset","3"]+lavfi(dur=3))
    add("sound-late","v.mp4",*X264,"-c:a","aac",src=lavfi()+["-itsoffset","2","-f","lavfi","-i","sine=f=440:d=2"])
    add("two-tracks","v.mp4","-map","0","-map","1",*X264,src=lavfi()+["-f","lavfi","-i","mandelbrot=s=160x120:r=25","-t","4"])
    add("default-mkv","v.mkv","-map","0","-map","1",*X264,"-disposition:v:0","0","-disposition:v:1","default",src=lavfi()+["-f","lavfi","-i","mandelbrot=s=160x120:r=25","-t","4"])
    add("cover","v.mp4","-map","1","-map","0","-c:v:0","mjpeg","-c:v:1","libx264","-pix_fmt:v:1","yuv420p","-disposition:v:0","attached_pic","-disposition:v:1","default",src=lavfi()+["-f","lavfi","-i","mandelbrot=s=160x120:r=25:end_pts=1,trim=end_frame=1"])
    add("sar","v.mp4",*X264,"-vf","setsar=2/1"); add("sar-mkv","v.mkv",*X264,"-vf","setsar=64/45"); add("sar-ts","v.ts",*X264,"-vf","setsar=3/2"); add("sar-tall","v.mp4",*X264,"-vf","setsar=1/2"); add("sar-avi","v.avi","-c:v","mpeg4","-vf","setsar=4/3")
    add("pq","v.mp4","-c:v","libx265","-pix_fmt","yuv420p10le","-x265-params","log-level=none:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc","-color_primaries","bt2020","-color_trc","smpte2084","-colorspace","bt2020nc"); add("hlg","v.mp4","-c:v","libx265","-pix_fmt","yuv420p10le","-x265-params","log-level=none:colorprim=bt2020:transfer=arib-std-b67:colormatrix=bt2020nc","-color_primaries","bt2020","-color_trc","arib-std-b67","-colorspace","bt2020nc")
    add("alpha","v.mov","-vf","format=argb,colorchannelmixer=aa=0.5","-c:v","qtrle",src=lavfi(dur=1)); add("one-frame","v.mp4",*X264,"-frames:v","1"); add("two-frames","v.mp4",*X264,"-frames:v","2")
    add("mkv-live","v.mkv",*X264,"-live","1"); add("webm-dash","v.webm","-c:v","libvpx","-deadline","realtime","-f","webm","-dash","1")
    add("av1-10","v.mkv","-c:v","libsvtav1","-preset","12","-pix_fmt","yuv420p10le")
    return k
# derived with -c copy or bytes: name → (from, file, input args, args)
DERIVED={
 "editlist":("h264-bf","v.mp4",["-ss","1.3"],["-c","copy"]),
 "negative":("h264-bf","v.mkv",["-ss","1.3"],["-c","copy","-avoid_negative_ts","disabled"]),
 "offset":("h264","v.mp4",["-itsoffset","2"],["-c","copy"]),
 "copyts-ts":("h264-ts","v.ts",[],["-c","copy","-mpegts_copyts","1","-output_ts_offset","5000"]),
 **{f"rot{d}":("h264","v.mp4",[],["-c","copy","-metadata:s:v:0",f"rotate={d}"]) for d in (90,180,270)},
}
def run(*a): subprocess.run(["ffmpeg","-v","error","-y","-nostdin",*map(str,a)],check=True,capture_output=True)
def make(folder):
    folder=Path(folder); out={}
    for name,(file,args) in kinds().items():
        p=folder/name/file; p.parent.mkdir(parents=True,exist_ok=True)
        if not p.exists():
            try: run("-threads","2",*args,p)
            except subprocess.CalledProcessError: continue  # this ffmpeg lacks the encoder
        out[name]=p
    for name,(frm,file,ia,args) in DERIVED.items():
        p=folder/name/file; p.parent.mkdir(parents=True,exist_ok=True)
        if not p.exists(): run(*ia,"-i",out[frm],*args,p)
        out[name]=p
    def data(name,file,b):
        p=folder/name/file; p.parent.mkdir(parents=True,exist_ok=True); p.write_bytes(b); out[name]=p
    def matrix(b,*m):
        b=bytearray(b); at=b.index(b"tkhd")+44; b[at:at+36]=struct.pack(">9i",*m); return bytes(b)
    h=out["h264"].read_bytes(); F=65536; W=1<<30
    data("mirror-h","v.mp4",matrix(h,-F,0,0,0,F,0,160*F,0,W)); data("mirror-v","v.mp4",matrix(h,F,0,0,0,-F,0,0,120*F,W)); data("transpose","v.mp4",matrix(h,0,F,0,F,0,0,0,0,W)); data("transverse","v.mp4",matrix(h,0,-F,0,-F,0,0,0,0,W)); data("shear","v.mp4",matrix(h,F,F//2,0,0,F,0,0,0,W)); data("rot45","v.mp4",matrix(h,46341,46341,0,-46341,46341,0,0,0,W))
    data("concat-ts","v.ts",out["h264-ts"].read_bytes()*2); data("concat-mkv","v.mkv",out["h264-mkv"].read_bytes()*2); data("concat-raw","v.h264",out["raw-h264"].read_bytes()*2)
    # change of resolution
    run(*lavfi("320x240",dur=2),*X264,folder/"big.ts"); run(*lavfi("160x120",dur=2),*X264,"-output_ts_offset","2",folder/"small.ts") 
    run(*lavfi("320x240",dur=2),*X264,folder/"big.h264"); run(*lavfi("160x120",dur=2),*X264,folder/"small.h264"); data("resize-raw","v.h264",(folder/"big.h264").read_bytes()+(folder/"small.h264").read_bytes())
    for e in ("mkv",):
        (folder/f"resize-{e}").mkdir(exist_ok=True); run("-f","h264","-r","25","-i",out["resize-raw"],"-c","copy",folder/"resize.mp4"); run("-i",folder/"resize.mp4","-c","copy",folder/f"resize-{e}/v.{e}")
    # tail garbage, wrong extension
    data("tail","v.mp4",h+bytes(1000)); data("wrong-ext","v.avi",h)
    return out
