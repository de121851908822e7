#!/usr/bin/env python3
"""Makes the dashboards for Grafana from dashboards.py: `make dashboards`, or `generate.py DIR` to write them elsewhere.

This file has everything that the dashboards share, so that they look alike: the layout, the variables, the markers of revisions and
alerts. dashboards.py says what each of them shows. The JSON is committed, because Grafana reads it as it is; a test compares both.
"""

import json
import pathlib
import sys

import dashboards

# The width of a dashboard in Grafana's columns.
COLUMNS = 24

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

# Values of a variable come from the labels of series that exist for as long as a proxy runs.
VARIABLES = {
    "fleet": ("Fleet", "label_values(signalbox_revision, fleet)"),
    "instance": ("Proxy", 'label_values(signalbox_revision{fleet=~"$fleet"}, instance)'),
    "route": ("Route", 'label_values(signalbox_requests_total{fleet=~"$fleet"}, route)'),
    "upstream": ("Upstream", 'label_values(signalbox_upstream_targets{fleet=~"$fleet"}, upstream)'),
}

# By the names of classes of status; other series get Grafana's own colours.
COLOURS = {"1xx": "purple", "2xx": "green", "3xx": "blue", "4xx": "yellow", "5xx": "red"}


def main():
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "dashboards"
    for content in dashboards.ALL:
        path = folder / f"{content['name']}.json"
        path.write_text(json.dumps(dashboard(content), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def dashboard(content):
    """A whole dashboard."""
    return {
        "uid": f"signalbox-{content['name']}",
        "title": f"Signalbox: {content['title']}",
        "description": content["description"],
        "tags": ["signalbox"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "links": [
            {
                "type": "dashboards",
                "title": "Signalbox",
                "tags": ["signalbox"],
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
                "targetBlank": False,
            }
        ],
        "templating": {"list": [datasource()] + [variable(name) for name in content["variables"]]},
        "annotations": {"list": markers()},
        "panels": panels(content["rows"]),
    }


def datasource():
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "current": {"text": "Prometheus", "value": "signalbox-prometheus"},
        "hide": 0,
        "refresh": 1,
    }


def variable(name):
    label, query = VARIABLES[name]
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "current": {"text": ["All"], "value": ["$__all"]},
        "includeAll": True,
        # Requests without a route have an empty name, which a list of names would leave out.
        "allValue": ".*",
        "multi": True,
        "refresh": 2,
        "sort": 1,
    }


def markers():
    """What happened meanwhile: new revisions, and alerts that page."""
    return [
        marker(
            "Revisions",
            'max by (fleet) (changes(signalbox_revision{fleet=~"$fleet"}[1m])) > 0',
            "blue",
            "A revision",
            "Proxies of fleet {{fleet}} serve another revision.",
        ),
        marker(
            "Alerts",
            'ALERTS{alertstate="firing", severity="page", alertname=~"Signalbox.*"}',
            "red",
            "{{alertname}}",
            "{{fleet}} {{upstream}} {{route}}",
        ),
    ]


def marker(name, expr, colour, title, text):
    return {
        "name": name,
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "expr": expr,
        "step": "60s",
        "iconColor": colour,
        "titleFormat": title,
        "textFormat": text,
    }


def panels(rows):
    """All panels, each row with its title above it. Panels fill a row from the left and go on below it."""
    result, y = [], 0
    for title, content in rows:
        result.append(
            {
                "id": len(result) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
                "panels": [],
            }
        )
        x, y, height = 0, y + 1, 0
        for each in content:
            width, tall = (4, 4) if each["type"] == "stat" else (each["width"], 8)
            if x + width > COLUMNS:
                x, y, height = 0, y + height, 0
            result.append(panel(len(result) + 1, each, {"x": x, "y": y, "w": width, "h": tall}))
            x, height = x + width, max(height, tall)
        y += height
    return result


def panel(number, content, position):
    defaults = {"unit": content["unit"], "min": content.get("min", 0), "noValue": content.get("none", "no data")}
    if "max" in content:
        defaults["max"] = content["max"]
    if "thresholds" in content:
        steps = [{"color": "green", "value": None}]
        steps += [{"color": colour, "value": value} for value, colour in content["thresholds"]]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    made = {
        "id": number,
        "type": content["type"],
        "title": content["title"],
        "description": content["description"],
        "datasource": DATASOURCE,
        "gridPos": position,
        "targets": targets(content),
        "fieldConfig": {"defaults": defaults, "overrides": []},
    }
    return made | LOOK[content["type"]](made, content)


def targets(content):
    made = []
    for index, (expr, legend) in enumerate(content["queries"]):
        one = {"refId": chr(ord("A") + index), "datasource": DATASOURCE, "expr": " ".join(expr.split()), "legendFormat": legend}
        if content["type"] == "timeseries":
            # Exemplars are points with the id of a trace, where the proxy has them.
            one |= {"range": True, "exemplar": "_bucket" in expr}
        else:
            one |= {"instant": True, "range": False}
            one |= {"format": "table"} if content["type"] == "table" else {}
        made.append(one)
    return made


def timeseries(made, content):
    made["fieldConfig"]["defaults"]["custom"] = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 30 if content.get("stack") else 5,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if content.get("stack") else "none", "group": "A"},
        "thresholdsStyle": {"mode": "line" if "thresholds" in content else "off"},
    }
    made["fieldConfig"]["overrides"] = [
        {"matcher": {"id": "byName", "options": name}, "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}]}
        for name, colour in COLOURS.items()
        if any("{{code_class}}" == legend for _, legend in content["queries"])
    ]
    return {
        "options": {
            "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"], "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    }


def stat(_made, content):
    return {
        "options": {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "background" if "thresholds" in content else "value",
            "graphMode": "none",
            "justifyMode": "auto",
            "textMode": "auto",
        }
    }


def table(_made, content):
    names = content["columns"]
    return {
        "options": {"showHeader": True, "sortBy": [{"displayName": names["Value"], "desc": True}]},
        "transformations": [
            {"id": "organize", "options": {"excludeByName": {"Time": True}, "indexByName": {}, "renameByName": names}}
        ],
    }


LOOK = {"timeseries": timeseries, "stat": stat, "table": table}


if __name__ == "__main__":
    main()
