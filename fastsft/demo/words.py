"""The closed word lists of the demo shop, English and Chinese side by side."""

from __future__ import annotations

from typing import Final, Literal

Language = Literal["en", "zh"]

PRODUCTS: Final = {
    "kettle": "水壶",
    "lamp": "台灯",
    "camera": "相机",
    "printer": "打印机",
    "phone": "手机",
    "jacket": "夹克",
    "backpack": "背包",
    "watch": "手表",
    "mirror": "镜子",
    "bicycle": "自行车",
    "helmet": "头盔",
    "guitar": "吉他",
}

CITIES: Final = {
    "Berlin": "柏林",
    "Paris": "巴黎",
    "London": "伦敦",
    "Rome": "罗马",
    "Vienna": "维也纳",
    "Prague": "布拉格",
    "Oslo": "奥斯陆",
    "Hamburg": "汉堡",
    "Beijing": "北京",
    "Shanghai": "上海",
    "Shenzhen": "深圳",
    "Tokyo": "东京",
}

INTENTS: Final = {
    "refund": "退款",
    "exchange": "换货",
    "cancel": "取消",
    "delivery": "物流",
    "repair": "维修",
    "invoice": "发票",
}

NAMES: Final = {
    "Anna": "安娜",
    "Ben": "本",
    "Emma": "艾玛",
    "Frank": "弗兰克",
    "Laura": "劳拉",
    "Martin": "马丁",
    "Nina": "妮娜",
    "Peter": "彼得",
}

_COMMON: Final = """
apple bird blue book bread bridge brown cat cloud coffee cold door dog early east egg fast field
fire fish flower forest friend garden glass gold good grass green hand happy heart high hill
home horse house ice island kind king lake late leaf light long milk moon morning mountain music
new night north old open orange paper path quiet rain red river road rock room round salt sand
school sea ship short silver slow small snow song south star stone storm street strong summer
sun table tall tea tree warm water west white wind window winter wood yellow young
"""
COMMON: Final = tuple(_COMMON.split())
_SYLLABLES: Final = """
ba de fi go ka lo mi nu pa re si to vu za len mar tin ros kel dan
"""
SYLLABLES: Final = tuple(_SYLLABLES.split())
