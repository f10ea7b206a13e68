/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.routes

import dev.tideline.core.Events
import dev.tideline.core.Knots
import dev.tideline.core.Metres
import dev.tideline.core.Moment
import dev.tideline.core.Outcome
import dev.tideline.core.Reason
import dev.tideline.core.Span
import dev.tideline.core.TideClock
import dev.tideline.core.TideEvent
import dev.tideline.core.done
import dev.tideline.core.ledger
import dev.tideline.core.onDone
import dev.tideline.core.onRefused
import dev.tideline.core.refuse
import dev.tideline.core.requireFound
import dev.tideline.core.requireThat
import dev.tideline.core.roundTo
import dev.tideline.core.then
import dev.tideline.ships.Ship
import java.util.PriorityQueue
import kotlin.math.roundToLong

/** Identifies a buoy or another point at which channels meet. */
@JvmInline
value class WaypointId(val raw: String) {
    override fun toString(): String = raw
}

/** Joins two waypoints by water that ships can use both ways. */
data class Channel(
    val one: WaypointId,
    val other: WaypointId,
    val miles: Double,
    val depth: Metres,
    val speedLimit: Knots,
) {
    /** Tells where the channel leads from one of its ends. */
    fun endFrom(start: WaypointId): WaypointId = if (start == one) other else one
}

/** Holds the waypoints of a passage and how long it takes. */
data class Route(val waypoints: List<WaypointId>, val miles: Double, val duration: Span)

/** Tells that a channel was closed to all traffic. */
data class ChannelClosed(
    val one: WaypointId,
    val other: WaypointId,
    override val at: Moment,
) : TideEvent

/** Finds the quickest way through the channels for a ship of some draught. */
class RouteFinder(
    channels: List<Channel>,
    private val events: Events,
    private val clock: TideClock,
    private val keelRoom: Metres = Metres(1.0),
) {
    private val log = ledger<RouteFinder>()
    private val open = channels.toMutableSet()

    /** Finds the quickest route, given the speed the ship can make and the tide above datum. */
    fun findRoute(
        ship: Ship,
        start: WaypointId,
        goal: WaypointId,
        speed: Knots,
        tide: Metres = Metres(0.0),
    ): Outcome<Route> =
        requireThat(speed > Knots(0.0), Reason.INVALID) { "${ship.name} does not move" }
            .then {
                val usable = open.filter { it.depth + tide >= ship.draught + keelRoom }
                search(start, goal, usable, speed)
            }
            .onDone { log.note("route.found", "ship" to ship.id, "miles" to it.miles.roundTo(1)) }
            .onRefused { log.warn("route.refused", "ship" to ship.id, "reason" to it.reason) }

    /** Closes the channel between two waypoints. */
    fun close(one: WaypointId, other: WaypointId): Outcome<Channel> =
        requireFound(open.firstOrNull { setOf(it.one, it.other) == setOf(one, other) }) {
            "no open channel between $one and $other"
        }.onDone {
            open -= it
            log.note("channel.closed", "one" to one, "other" to other)
            events.publish(ChannelClosed(one = one, other = other, at = clock.now()))
        }

    private fun search(
        start: WaypointId,
        goal: WaypointId,
        channels: List<Channel>,
        speed: Knots,
    ): Outcome<Route> {
        val minutes = mutableMapOf(start to 0.0)
        val cameBy = mutableMapOf<WaypointId, Channel>()
        val queue = PriorityQueue<Pair<WaypointId, Double>>(compareBy { it.second })
        queue += start to 0.0
        while (queue.isNotEmpty()) {
            val (here, spent) = queue.remove()
            if (here == goal) return done(trace(start, goal, cameBy, spent))
            if (spent > minutes.getValue(here)) continue
            for (channel in channels.filter { it.one == here || it.other == here }) {
                val next = channel.endFrom(here)
                val later = spent + 60 * channel.miles / minOf(speed, channel.speedLimit).raw
                if (later < (minutes[next] ?: Double.MAX_VALUE)) {
                    minutes[next] = later
                    cameBy[next] = channel
                    queue += next to later
                }
            }
        }
        return refuse(Reason.UNSAFE) { "no channel is deep enough from $start to $goal" }
    }

    private fun trace(
        start: WaypointId,
        goal: WaypointId,
        cameBy: Map<WaypointId, Channel>,
        minutes: Double,
    ): Route {
        val waypoints = generateSequence(goal) { here ->
            if (here == start) null else cameBy.getValue(here).endFrom(here)
        }.toList().reversed()
        return Route(
            waypoints = waypoints,
            miles = waypoints.drop(1).sumOf { cameBy.getValue(it).miles },
            duration = Span(minutes.roundToLong()),
        )
    }
}
